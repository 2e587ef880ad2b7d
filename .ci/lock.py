"""Resolve settings.ini into constraints.txt: one exact version of everything, for Python 3.10 to
3.13 at once.

    python .ci/lock.py

uv does the resolving; pip fetches it into a temporary folder. Whoever uses another package index
than PyPI names it
to uv in UV_DEFAULT_INDEX.
"""

import os
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "constraints.txt"
HEADER = "# The exact versions that are tested. Made by 'make lock' from settings.ini."
BUILD = ("pip", "setuptools")  # what the Makefile installs before the package itself


class LockError(Exception):
    "The versions cannot be resolved; the message says why."


def requirements(
    path: Path = ROOT / "settings.ini",  # nbdev's settings
) -> list[str]:  # one requirement a line, as pip reads it
    "The requirements, those of every extra, and what builds the package."
    parser = ConfigParser(delimiters=["="])
    parser.read(path, encoding="utf-8")
    settings = parser["DEFAULT"]
    names = [key for key in settings if key == "requirements" or key.endswith("_requirements")]
    return [*BUILD, *(requirement for name in names for requirement in settings[name].split())]


def resolve(lines: list[str]) -> str:
    "The lines of the lock file, without its header."
    with tempfile.TemporaryDirectory(prefix="fashion_nb-lock-") as temporary:
        folder = Path(temporary)
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            folder / "uv",
            "uv",
        ]
        fetched = subprocess.run(install, capture_output=True, text=True)
        if fetched.returncode:
            raise LockError(
                f"pip could not fetch uv, which resolves the versions: {fetched.stderr.strip()}"
            )
        wanted = folder / "requirements.in"
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [
            folder / "uv" / "bin" / "uv",
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--python-version",
            "3.10",
            "--no-header",
            "--no-annotate",
            "--cache-dir",
            folder / "cache",
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise LockError(f"uv found no set of versions for settings.ini:\n{done.stderr.strip()}")
        return done.stdout


def main() -> int:  # exit status: 0, or 2 with a sentence on stderr
    first = TARGET.read_text(encoding="utf-8").split("\n", 1)[0] if TARGET.is_file() else ""
    try:
        text = f"{first if first.startswith('#') else HEADER}\n{resolve(requirements())}"
    except LockError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    handle, part = tempfile.mkstemp(dir=ROOT, prefix=".constraints-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(part, 0o644)
    os.replace(part, TARGET)
    print(
        f"lock: {text.count('==')} versions in {TARGET.name}; 'git diff {TARGET.name}' shows what "
        "moved, 'make test' whether it works"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
