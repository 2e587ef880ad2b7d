"""Several devices and many runs: equal results, lost processes, unusable clusters."""
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fashion_nb.data.fashion_mnist import FashionMNIST, Split
from fashion_nb.data.idx import DataError
from fashion_nb.training import learner as learner_room
from fashion_nb.training import parallel as parallel_room
from fashion_nb.training.checkpoints import read_checkpoint
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.devices import check_shares, placed
from fashion_nb.training.loop import train
from fashion_nb.training.parallel import (
    outcomes_table,
    process_settings,
    simulate_devices,
    train_many,
)
from fashion_nb.training.runs import list_runs
from fashion_nb.training.schedules import TrainError

QUICK = TrainConfig(epochs=1, batch_size=100, validation_size=100, learning_rate=0.002)
PLACE = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "processes": True,
    "dashboard_address": None,
    "silence_logs": logging.CRITICAL,
}


def few(data, size):
    "The first training images, as a data set of their own."
    return FashionMNIST(
        Split(data.train.images[:size], data.train.labels[:size]),
        data.test,
        f"the first {size}",
        data.folder,
    )


# Several devices

SCRIPT = """
import json, shutil, sys
from pathlib import Path

from fashion_nb.core.errors import FashionNbError
from fashion_nb.data.fashion_mnist import FashionMNIST, Split, load_fashion_mnist
from fashion_nb.training.parallel import simulate_devices
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train

devices = int(sys.argv[1])
if devices > 1:
    simulate_devices(devices)
whole = load_fashion_mnist()
for folder, size, config, begun in json.loads(sys.argv[2]):
    part = Split(whole.train.images[:size], whole.train.labels[:size])
    data = FashionMNIST(part, whole.test, "few", whole.folder)
    if begun:  # a copy of this run, as if it had been cut off in its second epoch
        shutil.copytree(begun, folder)
        (Path(folder) / "checkpoints" / "epoch-0002.npz").unlink()
        record = Path(folder) / "record.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "interrupted"}))
    try:
        train(TrainConfig(**config), folder, data, progress=False)
    except FashionNbError as error:
        print(json.dumps([folder, str(error)]))
"""
FULL = {"epochs": 2, "batch_size": 100, "learning_rate": 0.002,
    "augmentation": "shift=2+flip+erase+mixup", "average": 0.9,
        "optimizer": "adamw", "weight_decay": 0.01, "validation_size": 200}
PLAIN = {"epochs": 1, "batch_size": 100, "learning_rate": 0.002, "validation_size": 100}
CASES = {
    "full": (640, FULL),
    "normalized": (500, PLAIN | {"model": "conv8v/2 conv8v/2 flat"}),
    "affine": (400, PLAIN | {"augmentation": "first_set"}),
}
ODD = [(400, {"batch_size": 101}), (333, {}), (401, {"validation_size": 101})]


def on_devices(backend, devices, asked):
    "Train in a process with some simulated devices; what it has refused."
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(devices), json.dumps(asked)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def arrays(folder, epoch=None):
    "The state after an epoch, the last if none is named."
    path = (
        sorted((Path(folder) / "checkpoints").glob("*.npz"))[-1]
        if epoch is None
        else Path(folder) / f"checkpoints/epoch-{epoch:04}.npz"
    )
    with np.load(path) as file:
        return {name: file[name] for name in file.files if "/" in name}


def largest_difference(first, second, part):
    "Between two states."
    assert first.keys() == second.keys()
    return max(
        float(np.abs(first[name].astype(float) - second[name]).max())
        for name in first
        if name.startswith(part)
    )


def orders(folder, names):
    """By the number of devices that train: the cases; what cannot be shared; and runs that were
    begun on the other number."""
    how = {1: "none", 2: "data_parallel"}
    cases = {count: [(f"{folder}/{name}-{count}", size, config | {"distribution": how[count]}, None)
                     for name, (size, config) in CASES.items() if name in names] for count in how}
    odd = [
        (f"{folder}/odd-{k}", size, PLAIN | change | {"distribution": how[2]}, None)
        for k, (size, change) in enumerate(ODD)
    ]
    size, config = CASES["full"]
    moved = {
        count: [(
            f"{folder}/moved-to-{count}",
            size,
            config | {"distribution": how[count]},
            f"{folder}/full-{3 - count}",
        )]
        for count in how
    }
    return cases[1], cases[2] + odd + moved[2], moved[1]


def each_backend():
    """A process each that trains on one of its two devices, and on both; and all cases, on one
    device in a process that has no other. All slow, as are the cells of room
    13 of training that do it in small."""
    # each case is compiled for one device and for two, which takes half a minute
    for backend in ("tensorflow", "jax"):
        yield pytest.param((backend, ["full"], False), id=backend, marks=pytest.mark.slow)
        yield pytest.param(
            (backend, list(CASES), True), id=f"{backend}-apart", marks=pytest.mark.slow
        )


@pytest.fixture(scope="module", params=each_backend())
def on_both(request, tmp_path_factory):
    """The cases on one device and on two; then a run that changes from one to two, and one that
    changes from two to one."""
    backend, names, apart = request.param
    pytest.importorskip(backend)
    folder = tmp_path_factory.mktemp(backend)
    one, two, back = orders(folder, names)
    refused = {}
    for devices, asked in ((1, one), (2, two), (1, back)) if apart else ((2, one + two + back),):
        refused |= on_devices(backend, devices, asked)
    return folder, backend, refused, names


def test_two_devices_give_what_one_gives(on_both):
    folder, backend, _, names = on_both
    for name in names:
        one, two = arrays(folder / f"{name}-1", epoch=1), arrays(folder / f"{name}-2", epoch=1)
        histories = [load_run_history(folder / f"{name}-{devices}") for devices in (1, 2)]
        # each device normalizes its own part of the batch
        if name == "normalized" and backend == "tensorflow":
            assert 1e-3 < largest_difference(one, two, "net/") < 0.2
            np.testing.assert_allclose(histories[0], histories[1], atol=0.1)
            continue
        assert largest_difference(one, two, "net/") < 1e-3, name  # measured: 1e-7 to 2e-5
        np.testing.assert_allclose(histories[0], histories[1], atol=2e-3)
    last = [arrays(folder / f"full-{devices}") for devices in (1, 2)]
    assert largest_difference(*last, "net/") < 1e-3
    assert largest_difference(*last, "averaged/") < 1e-3
    assert load_record(folder / "full-2")["device"].startswith("2 devices")
    assert not load_record(folder / "full-1")["device"].startswith("2 devices")


def load_record(folder):
    return json.loads((Path(folder) / "record.json").read_text())


def load_run_history(folder):
    import pandas as pd

    return pd.read_csv(Path(folder) / "log.csv")[
        ["loss", "accuracy", "val_loss", "val_accuracy"]
    ].to_numpy()


def test_what_cannot_be_shared_is_refused_before_anything_is_written(on_both):
    folder, _, refused, _ = on_both
    assert sorted(refused) == [str(folder / f"odd-{k}") for k in range(3)]
    for text, what in zip(
        (refused[name] for name in sorted(refused)),
        ("a batch has 101", "last batch of an epoch has 33", "held-out images has 101"),
    ):
        assert what in text and "2 devices" in text and "multiples of 2" in text
    assert not list(folder.glob("odd-*"))


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumes_on_another_number_of_devices(on_both, first):
    folder, *_ = on_both
    begun, moved = folder / f"full-{first}", folder / f"moved-to-{3 - first}"
    record = load_record(moved)
    assert record["status"] == "finished"
    assert [session["device"].startswith("2 devices") for session in record["sessions"]] == [
        first == 2,
        first == 1,
    ]
    assert largest_difference(arrays(moved, 1), arrays(begun, 1), "net/") == 0
    assert largest_difference(arrays(moved), arrays(begun), "net/") < 1e-3


def test_equal_shares():
    config = TrainConfig(distribution="data_parallel")
    for devices in (2, 4, 8):
        check_shares(config, devices, 55_000, 5_000)
    check_shares(replace(config, batch_size=120), 5, 55_000, 5_000)
    with pytest.raises(
        TrainError,
        match=(
            "a batch has 128 images, the last batch of an epoch has 88 images, the last batch of"
            " held-out images has 1,640"
        ),
    ):
        check_shares(config, 3, 55_000, 5_000)
    check_shares(replace(config, batch_size=129), 3, 54_999, 0)


def test_one_device_is_too_few():
    with pytest.raises(TrainError, match="at least two"):
        with placed(TrainConfig(distribution="data_parallel", device="cpu")):
            pass


def test_devices_cannot_be_made_too_late():
    import keras

    keras.ops.ones(1)
    with pytest.raises(TrainError, match="fresh process"):
        simulate_devices(2)


# --- many runs
# ----------------------------------------------------------------


class Fatal:
    "Data that kills the process which looks at it."

    @property
    def train(self):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


class Odd:
    "Data with an error that cannot travel between processes."

    @property
    def train(self):
        class Local(Exception):
            pass

        raise Local("no such luck")


class Telling:
    "Data with an error that tells about its process."

    @property
    def train(self):
        raise DataError(
            f"{os.getpid()} {os.environ.get('TF_NUM_INTRAOP_THREADS')}"
            f" {os.environ.get('OMP_NUM_THREADS')}"
        )


def attempts(folder, **data):
    "Runs that do not get as far as training."
    (folder / "tickets").mkdir()
    settings = process_settings(2, 2)
    return {
        name: (QUICK, folder / name, one, folder / "tickets" / name, 2, settings)
        for name, one in data.items()
    }


def test_processes_have_their_share_and_odd_errors_come_back(tmp_path):
    backend = {"backend": "loky", "inner_max_num_threads": 1}
    outcomes = parallel_room._rounds(
        attempts(tmp_path, a=Telling(), b=Odd(), c=Telling()), 2, backend, len([]).__add__
    )
    for name in "ac":
        process, *threads = str(outcomes[name]).split()
        assert (
            int(process) != os.getpid()
            and threads == ["1", "1"]
            and type(outcomes[name]) is DataError
        )
    assert type(outcomes["b"]) is TrainError and "Local: no such luck" in str(outcomes["b"])


def test_a_run_that_kills_its_process_is_given_up_and_the_others_are_not(tmp_path):
    backend = {"backend": "loky", "inner_max_num_threads": 1}
    asked = attempts(
        tmp_path, a=Telling(), fatal=Fatal(), b=Telling(), c=Telling(), again=Fatal(), d=Telling()
    )
    outcomes = parallel_room._rounds(asked, 2, backend, len([]).__add__)
    assert all(type(outcomes[name]) is DataError for name in "abcd")
    for name in ("fatal", "again"):
        assert "has lost its process 2 times" in str(outcomes[name])
        # two starts, and the one that gave up
        assert (tmp_path / "tickets" / name).stat().st_size == 3
    assert not (tmp_path / "fatal").exists()


class Deadly:
    """Data with which the first process that finishes an epoch of a run kills itself, with all of
    its files in place."""

    def __init__(self, data, marker):
        self.data, self.marker = data, marker

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.data, name)

    @property
    def train(self):

        marker, usual = self.marker, learner_room.Watcher.epoch

        def epoch(watcher, history):
            usual(watcher, history)
            try:
                with marker.open("x") as file:  # nobody else is to die
                    file.write(str(os.getpid()))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

        learner_room.Watcher.epoch = epoch
        return self.data.train


def check_survivors(folder, runs, configs, marker):
    """Every run is finished once, in order; only what was cut off was begun twice, and no finished
    epoch was trained again."""
    assert marker.exists()
    assert [run.config for run in runs] == configs
    assert {run.status for run in runs} == {"finished"}
    assert len(list_runs(folder)) == len(configs)
    assert not [path for path in folder.iterdir() if path.name.startswith(".many-")]
    for run in runs:
        assert len(run.history) == run.config.epochs and (run.folder / "model.keras").exists()
    dead, processes = int(marker.read_text()), {
        run.folder: [session["process"] for session in run.record["sessions"]] for run in runs
    }
    assert (
        dead != os.getpid()
        and sum(starts.count(dead) for starts in processes.values() if len(starts) > 1) == 1
    )
    [cut] = [run for run in runs if processes[run.folder][0] == dead != processes[run.folder][-1]]
    first, second = read_checkpoint(cut.checkpoints[2])[1]
    # the epoch before the kill was not trained again
    assert first["time"] < marker.stat().st_mtime < second["time"]
    return cut


THREE = [replace(QUICK, epochs=2, seed=seed) for seed in range(3)]


@pytest.mark.slow  # four processes, each of which starts TensorFlow
def test_a_killed_worker_of_a_cluster_loses_and_doubles_nothing(data, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder, small, marker = tmp_path / "runs", few(data, 300), tmp_path / "somebody has died"
    with distributed.LocalCluster(**PLACE) as cluster:
        runs = train_many(
            THREE,
            folder,
            dask=cluster.scheduler_address,
            data=Deadly(small, marker),
            progress=False,
        )
        cut = check_survivors(folder, runs, THREE, marker)
        assert outcomes_table(runs).starts.sum() == 4
        # alone on its machine a worker would take more threads, whose sums are rounded differently
        cluster.wait_for_workers(2)
        [whole] = train_many(
            [cut.config],
            tmp_path / "whole",
            dask=cluster.scheduler_address,
            data=small,
            progress=False,
        )
        assert len(whole.record["sessions"]) == 1
        before = {run.folder: (run.folder / "record.json").read_bytes() for run in runs}
        assert [
            run.folder
            for run in train_many(THREE, folder, dask=cluster.scheduler_address, progress=False)
        ] == list(before)
        assert {path: (path / "record.json").read_bytes() for path in before} == before
    ours, theirs = arrays(cut.folder), arrays(whole.folder)
    assert all(
        np.array_equal(ours[name], theirs[name]) for name in theirs
    ), "the weights differ from those of a run that was not cut"


@pytest.mark.slow
def test_a_killed_process_of_this_machine_loses_and_doubles_nothing(data, tmp_path):
    marker = tmp_path / "somebody has died"
    runs = train_many(
        THREE, tmp_path / "runs", jobs=2, data=Deadly(few(data, 300), marker), progress=False
    )
    check_survivors(tmp_path / "runs", runs, THREE, marker)


def test_a_run_that_kills_its_worker_is_given_up_and_the_others_are_not(tmp_path):
    distributed = pytest.importorskip("distributed")
    asked = attempts(tmp_path, a=Telling(), fatal=Fatal(), b=Telling(), c=Telling())
    with distributed.LocalCluster(**PLACE) as cluster, distributed.Client(cluster) as client:
        outcomes = parallel_room._rounds(
            asked, -1, {"backend": "dask", "client": client}, len([]).__add__
        )
    assert all(type(outcomes[name]) is DataError for name in "abc")
    assert "has lost its process 2 times" in str(outcomes["fatal"])


def test_clusters_that_cannot_be_used(monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(parallel_room, "_PATIENCE", 0.5)
    with pytest.raises(TrainError, match="cannot be used .*expected a running scheduler"):
        train_many([QUICK], tmp_path, dask="tcp://127.0.0.1:1", progress=False)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        with pytest.raises(TrainError, match="several threads: expected one each"):
            train_many([QUICK], tmp_path, dask=cluster.scheduler_address, progress=False)
    assert not list(tmp_path.iterdir())

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(parallel_room, "import_module", missing)
    with pytest.raises(TrainError, match=r"install fashion_nb\[dask\]"):
        train_many([QUICK], tmp_path, dask="tcp://127.0.0.1:1", progress=False)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"configs": []}, "no configuration"),
        ({"configs": [QUICK, {}]}, r"\{\} among the configurations"),
        ({"jobs": 0}, "jobs is 0"),
        ({"jobs": 1.5}, "jobs is 1.5"),
        ({"tries": 0}, "tries is 0"),
    ],
)
def test_what_cannot_be_asked_for(change, text, tmp_path):
    with pytest.raises(TrainError, match=text):
        train_many(**({"configs": [QUICK], "folder": tmp_path / "runs"} | change))
    assert not (tmp_path / "runs").exists()


def test_each_run_has_its_outcome_in_order(data, tmp_path):
    greedy = replace(QUICK, validation_size=299)
    small = few(data, 300)
    runs = train_many([greedy, QUICK, QUICK], tmp_path, data=small, progress=False)
    assert isinstance(runs[0], DataError) and "cannot hold out 299" in str(runs[0])
    assert runs[1].folder == runs[2].folder and runs[1].status == "finished"
    assert outcomes_table(runs).status.tolist() == ["failed", "finished", "finished"]
    alone = train(QUICK, tmp_path / "alone", small, progress=False)
    assert largest_difference(arrays(alone.folder), arrays(runs[1].folder), "") == 0
