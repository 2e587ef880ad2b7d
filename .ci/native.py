"What TensorFlow's native code writes to stderr when it starts, and how to hold it back."
import contextlib
import os
import re
import sys
import tempfile

NATIVE = re.compile(
    r"^(WARNING: All log messages before absl|[IWE]\d{4} \d\d:|"
    r"To enable the following instructions).*\n?",
    re.MULTILINE,
)


def without_greetings(text: str) -> str:
    "The text without TensorFlow's greetings, which differ on each machine."
    return NATIVE.sub("", text)


@contextlib.contextmanager
def without_native_messages():
    "Hold back what is written to stderr, native code's writing too; let it out without greetings."
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            sys.stderr.write(without_greetings(held.read().decode(errors="replace")))
