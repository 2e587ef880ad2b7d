"""Execute notebooks top to bottom, each in a Jupyter kernel of its own, and save their outputs,
cleaned.

    python .ci/execute.py nbs/02_first_network.ipynb ...   the notebooks named
    python .ci/execute.py --all nbs/05_training.ipynb      the cells flagged slow or gpu as well

A notebook is written back only when all of it ran. Cells whose flag stands in settings.ini's
`tst_flags`, and cells with `#| eval: false`, keep the outputs they have; a cell that exports is not
run. What a cell writes to stderr is shown here and not saved: it speaks of this machine, not of the
chapter.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from native import without_greetings
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 3600  # seconds a cell
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.MULTILINE)
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def is_skipped(
    source: str,  # a code cell's source
    flags: set[str],  # flags of the cells to skip
) -> bool:  # whether the cell keeps the outputs it has
    "A cell that exports, that is not to be evaluated, or that carries one of the flags."
    directives = [directive.lower().replace(" ", "") for directive in DIRECTIVE.findall(source)]
    return "nbdev_export(" in source or "eval:false" in directives or bool(flags & set(directives))


class Client(NotebookClient):
    "Executes the cells of a notebook but those that are to be skipped."

    flags: set[str] = set()

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == "code" and is_skipped(cell.source, self.flags):
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def named(path: Path) -> str:
    "A notebook's name below nbs/."
    return (
        path.relative_to(ROOT / "nbs").as_posix()
        if path.is_relative_to(ROOT / "nbs")
        else str(path)
    )


def drop_stderr(notebook, name: str) -> None:
    "Take what was written to stderr out of the outputs, and show it here instead."
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if (
                output.output_type == "stream"
                and output.name == "stderr"
                and (text := without_greetings(output.text).strip())
            ):
                print(
                    f"{name}: cell {number} wrote to stderr, which is not saved:\n{text}",
                    file=sys.stderr,
                )
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell.outputs if output.get("name") != "stderr"]


def execute(
    path: Path,  # the notebook
    flags: set[str],  # flags of the cells to skip
) -> float:  # seconds that it took
    "Execute one notebook and write it back, whole and cleaned."
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    place = {
        "metadata": {"path": str(path.parent)}
    }  # the kernel's working folder is the notebook's
    client = Client(
        notebook, timeout=TIMEOUT, kernel_name="python3", coalesce_streams=True, resources=place
    )
    client.flags = flags
    with (
        tempfile.TemporaryFile() as said
    ):  # what the kernel's native code says matters only when the kernel dies
        try:
            client.execute(stderr=said)
        except DeadKernelError:
            said.seek(0)
            print(without_greetings(said.read().decode(errors="replace")), file=sys.stderr)
            raise
    drop_stderr(notebook, named(path))
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".ipynb")
    os.close(handle)
    try:
        nbformat.write(notebook, part)
        nbdev_clean.__wrapped__(fname=part)
        os.chmod(part, path.stat().st_mode & 0o777)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return time.perf_counter() - start


def main() -> int:  # exit status: 0, or 1 when a notebook did not run to its end
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NB")
    parser.add_argument("--all", action="store_true", help="run the flagged cells too")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.notebooks]
    os.chdir(ROOT)
    flags = set() if args.all else set(get_config().tst_flags.split())
    failed = []
    for path in paths:
        try:
            print(f"{named(path)}: ran in {execute(path, flags):.0f} s", flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError, FileNotFoundError) as error:
            failed.append(named(path))
            text = str(error) if sys.stderr.isatty() else COLOR.sub("", str(error))
            print(
                f"{failed[-1]}: stopped and was left as it was:\n{text}",
                file=sys.stderr,
                flush=True,
            )
    if failed:
        print(
            f"execute: {len(failed)} of {len(paths)} notebooks did not run to their end: "
            f"{', '.join(failed)}",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
