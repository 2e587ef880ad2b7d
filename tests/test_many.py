"""Several devices and many runs: equal results, lost processes, and clusters that cannot be used."""
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fashion_nb.many as many_module
from fashion_nb.data import DataError, FashionMNIST, Split
from fashion_nb.many import outcomes_table, process_settings, simulate_devices, train_many
from fashion_nb.runs import list_runs, load_run
from fashion_nb.settings import TrainConfig, TrainError
from fashion_nb.train import check_shares, placed, train

QUICK = TrainConfig(epochs=1, batch_size=100, validation_size=100, learning_rate=0.002)
PLACE = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None, "silence_logs": logging.CRITICAL}


def few(data, size):
    "The first training images, as a data set of their own."
    return FashionMNIST(Split(data.train.images[:size], data.train.labels[:size]), data.test, f"the first {size}", data.folder)


# --- several devices ---------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import fashion_nb.train
from fashion_nb.data import FashionMNIST, FashionNbError, Split, load_fashion_mnist
from fashion_nb.many import simulate_devices

devices = int(sys.argv[1])
if devices > 1:
    simulate_devices(devices)
whole = load_fashion_mnist()
for folder, size, config in json.loads(sys.argv[2]):
    data = FashionMNIST(Split(whole.train.images[:size], whole.train.labels[:size]), whole.test, "few", whole.folder)
    try:
        fashion_nb.train.train(fashion_nb.train.TrainConfig(**config), folder, data, progress=False)
    except FashionNbError as error:
        print(json.dumps([folder, str(error)]))
"""
FULL = {"epochs": 2, "batch_size": 100, "learning_rate": 0.002, "augmentation": "shift=2+flip+erase+mixup", "average": 0.9,
        "optimizer": "adamw", "weight_decay": 0.01, "validation_size": 200}
PLAIN = {"epochs": 1, "batch_size": 100, "learning_rate": 0.002, "validation_size": 100}
CASES = {"full": (1_240, FULL), "normalised": (500, PLAIN | {"model": "conv8v/2 conv8v/2 flat"}), "affine": (400, PLAIN | {"augmentation": "first_set"})}


def on_devices(backend, devices, asked):
    "Train in a process with some simulated devices; what it has refused."
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(devices), json.dumps(asked)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def arrays(folder, epoch=None):
    "The state after an epoch, the last if none is named."
    path = sorted((Path(folder) / "checkpoints").glob("*.npz"))[-1] if epoch is None else Path(folder) / f"checkpoints/epoch-{epoch:04}.npz"
    with np.load(path) as file:
        return {name: file[name] for name in file.files if "/" in name}


def largest_difference(first, second, part):
    "Between two states."
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name].astype(float) - second[name]).max()) for name in first if name.startswith(part))


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def on_both(request, tmp_path_factory):
    "The cases on one device and on two; then a run that changes from two to one, and one that changes from one to two."
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    for devices, how in ((1, "none"), (2, "data_parallel")):
        asked = [(str(folder / f"{name}-{devices}"), size, config | {"distribution": how}) for name, (size, config) in CASES.items()]
        if devices == 2:
            asked += [(str(folder / f"odd-{k}"), size, PLAIN | change | {"distribution": how}) for k, (size, change) in enumerate(ODD)]
        refused = on_devices(request.param, devices, asked)
    return folder, request.param, refused


ODD = [(400, {"batch_size": 101}), (333, {}), (401, {"validation_size": 101})]


def test_two_devices_give_what_one_gives(on_both):
    folder, backend, _ = on_both
    for name in CASES:
        one, two = arrays(folder / f"{name}-1", epoch=1), arrays(folder / f"{name}-2", epoch=1)
        histories = [load_run_history(folder / f"{name}-{devices}") for devices in (1, 2)]
        if name == "normalised" and backend == "tensorflow":  # each device normalises its own part of the batch
            assert 1e-3 < largest_difference(one, two, "net/") < 0.2
            np.testing.assert_allclose(histories[0], histories[1], atol=0.1)
            continue
        assert largest_difference(one, two, "net/") < 1e-3, name  # measured: 1e-7 to 2e-5
        np.testing.assert_allclose(histories[0], histories[1], atol=2e-3)
    last = [arrays(folder / f"full-{devices}") for devices in (1, 2)]
    assert largest_difference(*last, "net/") < 1e-3
    assert largest_difference(*last, "averaged/") < 1e-3
    assert load_record(folder / "full-2")["device"].startswith("2 devices")


def load_record(folder):
    return json.loads((Path(folder) / "record.json").read_text())


def load_run_history(folder):
    import pandas as pd

    return pd.read_csv(Path(folder) / "log.csv")[["loss", "accuracy", "val_loss", "val_accuracy"]].to_numpy()


def test_what_cannot_be_shared_is_refused_before_anything_is_written(on_both):
    folder, _, refused = on_both
    assert sorted(refused) == [str(folder / f"odd-{k}") for k in range(3)]
    for (text, what) in zip((refused[name] for name in sorted(refused)), ("a batch has 101", "last batch of an epoch has 33", "held-out images has 101")):
        assert what in text and "2 devices" in text and "multiples of 2" in text
    assert not list(folder.glob("odd-*"))


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_on_another_number_of_devices(on_both, first, tmp_path):
    import shutil

    folder, backend, _ = on_both
    moved = tmp_path / "moved"
    shutil.copytree(folder / f"full-{first}", moved)
    (moved / "checkpoints" / "epoch-0002.npz").unlink()
    (moved / "record.json").write_text(json.dumps(load_record(moved) | {"status": "interrupted"}))
    second = 3 - first
    size, config = CASES["full"]
    assert not on_devices(backend, second, [(str(moved), size, config | {"distribution": "data_parallel" if second == 2 else "none"})])
    record = load_record(moved)
    assert record["status"] == "finished" and len(record["sessions"]) == 2
    assert largest_difference(arrays(moved, 1), arrays(folder / f"full-{first}", 1), "net/") == 0
    assert largest_difference(arrays(moved), arrays(folder / f"full-{first}"), "net/") < 1e-3


def test_equal_shares():
    config = TrainConfig(distribution="data_parallel")
    for devices in (2, 4, 8):
        check_shares(config, devices, 55_000, 5_000)
    check_shares(replace(config, batch_size=120), 5, 55_000, 5_000)
    with pytest.raises(TrainError, match="a batch has 128 images, the last batch of an epoch has 88 images, the last batch of held-out images has 1,640"):
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


# --- many runs ---------------------------------------------------------------------------------------------------------


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
        raise DataError(f"{os.getpid()} {os.environ.get('TF_NUM_INTRAOP_THREADS')} {os.environ.get('OMP_NUM_THREADS')}")


def attempts(folder, **data):
    "Runs that do not get as far as training."
    (folder / "tickets").mkdir()
    settings = process_settings(2, 2)
    return {name: (QUICK, folder / name, one, folder / "tickets" / name, 2, settings) for name, one in data.items()}


def test_processes_have_their_share_and_odd_errors_come_back(tmp_path):
    backend = {"backend": "loky", "inner_max_num_threads": 1}
    outcomes = many_module._rounds(attempts(tmp_path, a=Telling(), b=Odd(), c=Telling()), 2, backend, len([]).__add__)
    for name in "ac":
        process, *threads = str(outcomes[name]).split()
        assert int(process) != os.getpid() and threads == ["1", "1"] and type(outcomes[name]) is DataError
    assert type(outcomes["b"]) is TrainError and "Local: no such luck" in str(outcomes["b"])


def test_a_run_that_kills_its_process_is_given_up_and_the_others_are_not(tmp_path):
    backend = {"backend": "loky", "inner_max_num_threads": 1}
    asked = attempts(tmp_path, a=Telling(), fatal=Fatal(), b=Telling(), c=Telling(), again=Fatal(), d=Telling())
    outcomes = many_module._rounds(asked, 2, backend, len([]).__add__)
    assert all(type(outcomes[name]) is DataError for name in "abcd")
    for name in ("fatal", "again"):
        assert "has lost its process 2 times" in str(outcomes[name])
        assert (tmp_path / "tickets" / name).stat().st_size == 3  # two starts, and the one that gave up
    assert not (tmp_path / "fatal").exists()


def begun(folder):
    "The runs so far; one that is just beginning has no record yet, which `list_runs` would say in a warning."
    return [load_run(path.parent) for path in sorted(folder.glob("*/record.json"))]


def kill_one(folder, patience=300):
    "Kill the process of the first run that has finished an epoch and has more to do; tells the run, the process and its log."
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for run in begun(folder):
            if run.status == "running" and 1 <= len(run.history) < run.config.epochs:
                process = int((run.folder / "process").read_text())
                assert process != os.getpid()
                os.kill(process, signal.SIGKILL)
                return run.folder.name, process, (run.folder / "log.csv").read_text()
        time.sleep(0.01)
    raise AssertionError("no run came so far")


def check_survivors(folder, runs, configs, killed):
    "Every run is finished once, in order; only what was cut off was begun twice, and no finished epoch was trained again."
    name, process, log = killed
    assert [run.config for run in runs] == configs
    assert {run.status for run in runs} == {"finished"}
    assert len(list_runs(folder)) == len(configs)
    assert not [path for path in folder.iterdir() if path.name.startswith(".many-")]
    for run in runs:
        processes = [session["process"] for session in run.record["sessions"]]
        assert len(run.history) == run.config.epochs and (run.folder / "model.keras").exists()
        assert processes.count(process) <= 1 or run.folder.name != name
    cut = load_run(folder / name)
    assert [session["process"] == process for session in cut.record["sessions"]] == [True, False]
    assert (cut.folder / "log.csv").read_text().startswith(log)
    return cut


FOUR = [replace(QUICK, epochs=3, seed=seed) for seed in range(4)]


def test_a_killed_worker_of_a_cluster_loses_and_doubles_nothing(data, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder, small = tmp_path / "runs", few(data, 500)
    with distributed.LocalCluster(**PLACE) as cluster, ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_one, folder)
        runs = train_many(FOUR, folder, dask=cluster.scheduler_address, data=small, progress=False)
        cut = check_survivors(folder, runs, FOUR, killing.result())
        assert outcomes_table(runs).starts.sum() == 5
        assert all(len(run.record["sessions"]) == 1 for run in runs if run.folder != cut.folder)
        [whole] = train_many([cut.config], tmp_path / "whole", dask=cluster.scheduler_address, data=small, progress=False)
        assert len(whole.record["sessions"]) == 1
        ours, theirs = arrays(cut.folder), arrays(whole.folder)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), "the weights differ from those of a run that was not cut"
        before = {run.folder: (run.folder / "record.json").read_bytes() for run in runs}
        assert [run.folder for run in train_many(FOUR, folder, dask=cluster.scheduler_address, progress=False)] == list(before)
        assert {path: (path / "record.json").read_bytes() for path in before} == before


@pytest.mark.slow
def test_a_killed_process_of_this_machine_loses_and_doubles_nothing(data, tmp_path):
    folder = tmp_path / "runs"
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_one, folder)
        runs = train_many(FOUR, folder, jobs=2, data=few(data, 500), progress=False)
        check_survivors(folder, runs, FOUR, killing.result())


def test_a_run_that_kills_its_worker_is_given_up_and_the_others_are_not(tmp_path):
    distributed = pytest.importorskip("distributed")
    asked = attempts(tmp_path, a=Telling(), fatal=Fatal(), b=Telling(), c=Telling())
    with distributed.LocalCluster(**PLACE) as cluster, distributed.Client(cluster) as client:
        outcomes = many_module._rounds(asked, -1, {"backend": "dask", "client": client}, len([]).__add__)
    assert all(type(outcomes[name]) is DataError for name in "abc")
    assert "has lost its process 2 times" in str(outcomes["fatal"])


def test_clusters_that_cannot_be_used(monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    with pytest.raises(TrainError, match="cannot be used .*expected a running scheduler"):
        train_many([QUICK], tmp_path, dask="tcp://127.0.0.1:1", progress=False)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(TrainError, match="several threads: expected one each"):
            train_many([QUICK], tmp_path, dask=cluster.scheduler_address, progress=False)
    assert not list(tmp_path.iterdir())

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(many_module, "import_module", missing)
    with pytest.raises(TrainError, match=r"install fashion_nb\[dask\]"):
        train_many([QUICK], tmp_path, dask="tcp://127.0.0.1:1", progress=False)


@pytest.mark.parametrize("change, text", [({"configs": []}, "no configuration"), ({"configs": [QUICK, {}]}, r"\{\} among the configurations"),
                                          ({"jobs": 0}, "jobs is 0"), ({"jobs": 1.5}, "jobs is 1.5"), ({"tries": 0}, "tries is 0")])
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
