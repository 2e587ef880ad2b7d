"""The command `fashion_nb` as somebody types it, in this process or in one of its own."""
import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

from fashion_nb.cli.base import run
from fashion_nb.cli.main import cli


def in_a_process(*arguments, cwd=None, timeout=300, **environment):
    "What a new process answers, which imports all anew."
    return subprocess.run(
        [sys.executable, "-m", "fashion_nb", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=os.environ | environment,
    )


def fashion_nb(*arguments, cwd=None, **environment):
    "What the same command answers here, where Keras was imported once for all of them."
    words = [str(argument) for argument in arguments]
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(warnings, "showwarning"),
        working_in(cwd),
        captured(1, "stdout") as out,
        captured(2, "stderr") as err,
    ):
        status = run(cli, words)
    return subprocess.CompletedProcess(words, status, out[0], err[0])


@contextlib.contextmanager
def working_in(folder):
    "Another working folder for a while; None stays."
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def captured(number, name):
    "What is written to a stream, also by native code: a list that has the text at the end."
    text, before, stream = [], os.dup(number), getattr(sys, name)
    with tempfile.TemporaryFile("w+", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), number)
        setattr(sys, name, file)
        try:
            yield text
        finally:
            setattr(sys, name, stream)
            os.dup2(before, number)
            os.close(before)
            file.seek(0)
            text.append(file.read())
