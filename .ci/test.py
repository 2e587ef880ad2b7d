"""Run every notebook's tests and tests/, two at a time, and sum up.

    python .ci/test.py                   everything but what is marked or flagged slow
    python .ci/test.py --slow            that too
    python .ci/test.py cost fast         only the notebooks and test files with these in their names
    python .ci/test.py --most 15         only those that took at most 15 s when they were last timed
    python .ci/test.py --remember        write down how long each took, in .ci/durations.json

Each notebook and each test file is a job in a process of its own. Importing TensorFlow, Keras,
pandas and matplotlib costs seven seconds, so it is done once, here: the jobs are forks of this
process, which computes nothing with TensorFlow and so has none of its threads. Jobs that took
longest start first. A job's output is shown when it fails. The last line counts tests; a notebook
is one. Whatever draws random numbers without a seed of its own gets the one in FASHION_NB_SEED, 0
without it: a run repeats the last one, and the nights try others.
"""
import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from native import without_native_messages

ROOT = Path(__file__).resolve().parent.parent
DURATIONS = ROOT / ".ci" / "durations.json"
UNKNOWN = 60  # seconds, for a job that was never timed: it starts early rather than late
LIMIT = 3600  # seconds after which a job counts as failed; three times that with --slow
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PJRT_NPROC")
ALONE = {"tests/test_applications.py"}  # with --slow: takes up to 17 GB of memory
SEED = int(os.environ.get("FASHION_NB_SEED", "0"))  # of what a test draws and gives no seed
PRELOADED = (
    "hypothesis", "matplotlib.pyplot", "nbdev.test", "pandas", "pytest", "scipy.stats", "seaborn",
    "sklearn.metrics",
)  # fmt: skip


@dataclass
class Job:
    "A notebook or a test file."

    name: str  # its path from the top level
    expected: float  # seconds
    folder: Path | None = None  # for its output, its result and its temporary files
    started: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def output(self) -> str:
        "What it has printed."
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")


# ---------------------------------------------------------------- which jobs, in which order


def durations() -> dict[str, float]:  # seconds by name
    "How long the jobs took when they were last timed."
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}


def all_names() -> list[str]:
    "Every notebook and every test file."
    hidden = (".", "_")
    notebooks = (
        path
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if not any(part.startswith(hidden) for part in path.relative_to(ROOT / "nbs").parts)
    )
    files = [*notebooks, *(ROOT / "tests").glob("test_*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def choose(
    names: list[str],
    taken: dict[str, float],  # seconds when last timed
    words: list[str],  # only names with one of these; none is all
    most: float | None = None,  # only what took at most so many seconds; None is all
) -> list[Job]:  # the longest first
    "The jobs to run, in the order in which they start."
    jobs = [
        Job(name, taken.get(name, UNKNOWN))
        for name in names
        if not words or any(word in name for word in words)
    ]
    kept = [job for job in jobs if most is None or job.expected <= most]
    return sorted(kept, key=lambda job: (-job.expected, job.name))


# ---------------------------------------------------------------- inside a job


class Counter:
    "A plug-in of pytest that counts results."

    def __init__(self):
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_terminal_summary(self, terminalreporter):
        kinds = {"passed": "passed", "xfailed": "passed", "skipped": "skipped"}
        kinds |= {"failed": "failed", "error": "failed", "xpassed": "failed"}
        for kind, reports in terminalreporter.stats.items():
            if kind in kinds:
                self.counts[kinds[kind]] += len(reports)


def seed_all(seed: int) -> None:
    """Give every random number generator a seed, so that a failure comes again when it is looked
    for, and never on a machine that has changed nothing."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if "keras" in sys.modules:  # where it is not, a job chooses its back end itself
        sys.modules["keras"].utils.set_random_seed(seed)


def run_tests(name: str, slow: bool) -> dict[str, int]:  # counts
    "Run one test file with pytest."
    import pytest

    counter, options = Counter(), ["-p", "no:cacheprovider", "--durations=5"]
    options += ["--slow"] if slow else []
    options.append(f"--hypothesis-seed={SEED}")
    status = pytest.main([*options, str(ROOT / name)], plugins=[counter])
    if status not in (0, 5) and not counter.counts["failed"]:  # 5: every test was left out
        counter.counts["failed"] = 1
    return counter.counts


def run_notebook(name: str, slow: bool) -> dict[str, int]:  # counts
    "Run one notebook as nbdev_test does."
    from importlib.util import find_spec

    from nbdev.config import get_config
    from nbdev.test import test_nb

    flags = get_config().tst_flags.split()
    forced = {"slow", *(["torch"] if find_spec("torch") else [])} if slow else set()
    os.chdir(ROOT / "nbs")
    passed, _ = test_nb(ROOT / name, flags, sorted(forced), basepath=ROOT)
    return {"passed": int(passed), "failed": int(not passed), "skipped": 0}


def live(job: Job, slow: bool) -> None:
    "The whole life of a job's process; it does not return."
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    os.setsid()  # so that all that it leaves running can be ended with it
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        path = job.folder / "output" if stream else os.devnull
        os.dup2(os.open(path, flags | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.environ["TMPDIR"] = str(job.folder / "tmp")
    tempfile.tempdir = None
    counts = {"passed": 0, "failed": 1, "skipped": 0}
    try:
        seed_all(SEED)
        run = run_notebook if job.name.endswith(".ipynb") else run_tests
        counts = run(job.name, slow)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        (job.folder / "counts").write_text(json.dumps(counts), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # not as Python ends, which would wait for idle workers: they are ended below


# ---------------------------------------------------------------- running jobs side by side


def share_cores(workers: int) -> None:
    "Give the native libraries of each job its share of the cores: more threads only wait in turn."
    for name in THREADS:
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))


def preload() -> None:
    "Import what nearly every job imports. Nothing is computed: a fork must find no native threads."
    from importlib import import_module

    for name in PRELOADED:
        import_module(name)
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import_module("tensorflow")
        import_module("keras")


def start(job: Job, folder: Path, slow: bool) -> int:  # its process id
    "Fork a process for a job."
    job.folder = Path(tempfile.mkdtemp(dir=folder))
    (job.folder / "tmp").mkdir()
    (job.folder / "output").touch()
    job.started = time.monotonic()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's idle threads are known to it
        process = os.fork()
    if not process:
        live(job, slow)
    return process


def end_group(process: int) -> None:
    "End whatever a job has left running."
    try:
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def finish(job: Job, status: int, limit: float) -> float:  # seconds
    "Read a finished job's counts, tell them, show its output when it failed, and tidy up."
    seconds = time.monotonic() - job.started
    try:
        job.counts = json.loads((job.folder / "counts").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        job.counts = {"failed": 1}
    told = ", ".join(f"{number} {kind}" for kind, number in job.counts.items() if number)
    print(f"{job.name:40} {seconds:5.0f} s  {told or 'no test'}", flush=True)
    if job.counts.get("failed"):
        code = os.waitstatus_to_exitcode(status)
        ended = f"it was ended by signal {-code}" if code < 0 else ""
        ended = f"it did not end within {limit:.0f} s" if seconds >= limit else ended
        lines = [f"---- {job.name} failed", job.output.rstrip(), ended, f"---- {job.name}: end"]
        print(*filter(None, lines), sep="\n", flush=True)
    shutil.rmtree(job.folder, ignore_errors=True)
    return seconds


def run_all(
    jobs: list[Job],  # in the order in which they start
    workers: int = 2,  # how many at a time
    slow: bool = False,  # what is marked or flagged slow as well
    limit: float = LIMIT,  # seconds for each
) -> dict[str, float]:  # seconds by name
    "Run jobs side by side; their counts are in them afterwards."
    waiting, running, taken = list(jobs), {}, {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no job outlives this process
    options = {"prefix": "fashion_nb-test-", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**options) as folder:
        try:
            while waiting or running:
                while waiting and len(running) < workers and fits(waiting[0], running, slow):
                    job = waiting.pop(0)
                    running[start(job, Path(folder), slow)] = job
                for process, job in list(running.items()):
                    if time.monotonic() - job.started > limit:
                        end_group(process)
                    ended, status = os.waitpid(process, os.WNOHANG)
                    if ended:
                        end_group(process)
                        taken[job.name] = finish(running.pop(process), status, limit)
                time.sleep(0.05)
        finally:
            for process in running:
                end_group(process)
    return taken


def fits(job: Job, running: dict[int, Job], slow: bool) -> bool:
    "Whether a job may run beside those that are running."
    alone = [one.name for one in (job, *running.values()) if slow and one.name in ALONE]
    return not alone or not running


def main(arguments: list[str] | None = None) -> int:  # exit status: 0, 1 when a test failed
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="run only what is named so")
    parser.add_argument("--slow", action="store_true", help="what is slow as well")
    parser.add_argument("--most", type=float, metavar="S", help="only what took at most S seconds")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="how many at a time")
    parser.add_argument("--remember", action="store_true", help="write down how long each took")
    args = parser.parse_args(arguments)
    jobs = choose(all_names(), durations(), args.words, args.most)
    if not jobs:
        print("test: no notebook and no test file is named so; see nbs/ and tests/")
        return 2
    begun = time.monotonic()
    os.chdir(ROOT)
    share_cores(args.workers)
    with without_native_messages():
        preload()
    taken = run_all(jobs, args.workers, args.slow, LIMIT * (3 if args.slow else 1))
    if args.remember:
        known = {name: seconds for name, seconds in durations().items() if name in all_names()}
        known |= {name: round(seconds) for name, seconds in taken.items()}
        text = json.dumps(dict(sorted(known.items())), indent=1)
        DURATIONS.write_text(text + "\n", encoding="utf-8")
    failed = [job.name for job in jobs if job.counts.get("failed")]
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(f"{len(jobs)} jobs took {time.monotonic() - begun:.0f} s")
    kinds = ("passed", "failed", "skipped")
    sums = {kind: sum(job.counts.get(kind, 0) for job in jobs) for kind in kinds}
    print(", ".join(f"{number} {kind}" for kind, number in sums.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
