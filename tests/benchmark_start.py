"""Seconds of processor time that the package takes to start, beyond the interpreter itself.

    python tests/benchmark_start.py

An idle machine should stay within 0.05 s for the import and 0.4 s for the command line's help. The
tests hold both against importing NumPy instead, because seconds differ from machine to machine.
"""

import sys
from pathlib import Path

from test_project import processor_seconds

COMMANDS = {
    "import fashion_nb": (sys.executable, "-c", "import fashion_nb"),
    "fashion_nb --help": (Path(sys.executable).parent / "fashion_nb", "--help"),
    "import numpy": (sys.executable, "-c", "import numpy"),
}


def main() -> None:
    "Print the best of nine, in turns."
    start = (sys.executable, "-c", "pass")
    turns = [[processor_seconds(*each) for each in (start, *COMMANDS.values())] for _ in range(9)]
    least, *others = (min(column) for column in zip(*turns))
    for name, seconds in zip(COMMANDS, others):
        print(f"{name:20} {seconds - least:.3f} s")


if __name__ == "__main__":
    main()
