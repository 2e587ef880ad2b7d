#!/bin/sh
# Make the virtual environment $1 with the Python $2 and put pip into it.
# Debian and Ubuntu ship Python without ensurepip (it is in python3-venv); then pip's own wheel is
# taken from their package python3-pip-whl, which needs no root: downloaded, unpacked, used once.
set -eu
venv=$1 python=$2
if [ -z "$python" ]; then
    echo "make: no Python 3.10 to 3.13 was found on the PATH; install one, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 2
fi
rm -rf "$venv"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    exec "$python" -m venv "$venv"
fi
echo "This Python has no ensurepip; taking pip from the package python3-pip-whl." >&2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! { chmod 755 "$folder" && cd "$folder" && apt-get download -qq python3-pip-whl && dpkg -x python3-pip-whl_*.deb .; }; then
    echo "make: pip could not be had; install it with: sudo apt-get install python3-venv" >&2
    exit 2
fi
cd "$OLDPWD"
"$python" -m venv --without-pip "$venv"
PYTHONPATH=$(ls "$folder"/usr/share/python-wheels/pip-*.whl) "$venv/bin/python" -m pip install --quiet pip
