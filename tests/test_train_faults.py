"""Trainings that are killed, starved, disturbed and damaged: the result is the same to the last
bit, or a clear message."""
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_runs import CTRL_C, Nursery, assert_same_run, leftovers, made_data

from fashion_nb.models.zoo import build_model
from fashion_nb.training import learner as learner_room
from fashion_nb.training.checkpoints import (
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import resume, train
from fashion_nb.training.runs import list_runs, load_run, save_model
from fashion_nb.training.schedules import TrainError

# dropout, augmentation that draws all kinds of numbers, an average of weights: much that could be
# forgotten
CONFIG = TrainConfig(
    model="mnist_classifier_32p_64p",
    epochs=4,
    batch_size=20,
    optimizer="adamw",
    learning_rate=0.001,
    weight_decay=0.01,
    augmentation="shift=2+flip+erase=0.5+mixup",
    average=0.9,
    label_smoothing=0.1,
    warmup_epochs=0.5,
    validation_size=40,
    seed=3,
)  # fmt: skip
CHEAP = TrainConfig(epochs=4, batch_size=25, validation_size=40)


@pytest.fixture(scope="module")
def nursery():
    "Real trainings in child processes."
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def fakes():
    "Trainings in child processes with numbers instead of a network: milliseconds each."
    nursery = Nursery(fake=True)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    "A training that nothing happened to: its folder, and what the child said."
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    answer = nursery(CONFIG, folder)
    assert (answer["error"], answer["status"]) == (None, 0)
    return folder, answer


@pytest.fixture(scope="module")
def fake_undisturbed(fakes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "fake"
    answer = fakes(CHEAP, folder)
    assert (answer["error"], answer["status"]) == (None, 0)
    return folder, answer


@pytest.fixture
def cut_off(undisturbed, tmp_path):
    """A copy of the real run as if it had been killed before the end; the last checkpoint is that
    of epoch 4."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    (folder / "model.keras").unlink()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    return folder


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# Kills


def kill_until_finished(nursery, config, folder, orders):
    """Train in one folder, each time with the next order, until a child is left to finish; returns
    the kills."""
    kills = 0
    for order in orders:
        answer = nursery(config, folder, **order)
        if answer["status"] == 0:
            assert answer["error"] is None, answer
            return kills
        assert answer["status"] == -signal.SIGKILL, answer
        kills += 1
        if (folder / "record.json").exists():
            assert load_run(folder).status in ("interrupted", "finished")
    raise AssertionError("the orders were used up before the run was finished")


def test_two_kills(nursery, undisturbed, tmp_path):
    seen = undisturbed[1]["seen"]
    in_epoch_2 = [k for k, what in enumerate(seen, 1) if what.endswith("of epoch 2")]
    orders = [{"at": in_epoch_2[0], "deed": "kill"}]  # training on the second epoch
    orders.append({
        "at": 1 + next(k for k, what in enumerate(seen) if what.startswith("write epoch")),
        "deed": "half",
    })
    assert kill_until_finished(nursery, CONFIG, tmp_path / "run", [*orders, {}]) == 2
    assert_same_run(tmp_path / "run", undisturbed[0])
    assert len(load_run(tmp_path / "run").record["sessions"]) >= 2


@pytest.mark.slow
def test_fifty_kills_at_random_moments(nursery, undisturbed, tmp_path):
    random = np.random.default_rng(5)
    events, seconds, kills, runs = len(undisturbed[1]["seen"]), undisturbed[1]["seconds"], 0, 0

    def orders():
        while kills_before + len(given) < 50:
            by_time = {"after": float(random.uniform(0, seconds))}
            by_event = {
                "at": int(random.integers(1, events + 1)),
                "deed": str(random.choice(["half", "before", "after"])),
            }
            given.append(by_time if random.random() < 0.6 else by_event)
            yield given[-1]
        yield {}

    while kills < 50:
        folder, kills_before, given = tmp_path / f"run-{runs}", kills, []
        kills += kill_until_finished(nursery, CONFIG, folder, orders())
        assert_same_run(folder, undisturbed[0])
        runs += 1
    assert kills == 50 and runs >= 2


@pytest.mark.slow
def test_kills_of_whole_processes(undisturbed, tmp_path):
    "Nothing is shared with a nursery: Python and TensorFlow start anew each time."
    random, code = np.random.default_rng(6), (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom small_runs import *\n"
        "train(TrainConfig.from_json(sys.argv[2]), sys.argv[3], made_data(), progress=False)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parent),
        CONFIG.to_json(),
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    start = time.monotonic()
    subprocess.run(
        [*command[:-1], str(tmp_path / "whole")],
        check=True,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    seconds, kills = time.monotonic() - start, 0
    for _ in range(4):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(random.uniform(0, seconds)))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    assert kills >= 1
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert_same_run(tmp_path / "run", undisturbed[0])


@pytest.mark.parametrize(
    "deed",
    [
        "half",
        pytest.param("before", marks=pytest.mark.slow),
        pytest.param("after", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_each_write(fakes, fake_undisturbed, tmp_path, deed):
    "Every file of a run, cut in the middle, or killed just before or after it takes its place."
    folder, answer = fake_undisturbed
    moments = range(1, len(answer["seen"]) + 1)
    assert {what.split()[0] for what in answer["seen"]} == {"write", "remove", "batch"}
    order = {"config": CHEAP, "deed": deed}
    killed = fakes.many(*({**order, "folder": tmp_path / str(at), "at": at} for at in moments))
    assert [one["status"] for one in killed] == [-signal.SIGKILL] * len(moments)
    ended = fakes.many(*({"config": CHEAP, "folder": tmp_path / str(at)} for at in moments))
    assert [one["error"] for one in ended] == [None] * len(moments)
    for at in moments:
        assert_same_run(tmp_path / str(at), folder)


def test_a_kill_after_a_kill(fakes, fake_undisturbed, tmp_path):
    random, total = np.random.default_rng(7), len(fake_undisturbed[1]["seen"])
    for number in range(5):
        orders = [
            {
                "at": int(random.integers(1, total)),
                "deed": str(random.choice(["half", "before", "after"])),
            }
            for _ in range(8)
        ]
        kill_until_finished(fakes, CHEAP, tmp_path / str(number), [*orders, {}])
        assert_same_run(tmp_path / str(number), fake_undisturbed[0])


def test_a_finished_run_is_returned_as_it_is(fakes, fake_undisturbed, tmp_path):
    folder = shutil.copytree(fake_undisturbed[0], tmp_path / "run")
    before = content(folder)
    assert fakes(CHEAP, folder)["seen"] == [] and content(folder) == before
    # without data, without a device
    assert train(CHEAP, folder, progress=False).status == "finished"


def test_the_folder_of_another_run_is_refused(fakes, fake_undisturbed, tmp_path):
    folder = shutil.copytree(fake_undisturbed[0], tmp_path / "run")
    before = content(folder)
    answer = fakes(dataclasses.replace(CHEAP, seed=9, epochs=5), folder)
    assert "holds a run of other settings (epochs 4, not 5; seed 0, not 9)".replace(
        "; ", ", "
    ) in answer["error"].replace("; ", ", ")
    assert content(folder) == before


def test_other_images_are_refused(fakes, fake_undisturbed, tmp_path):
    folder = tmp_path / "run"
    assert fakes(CHEAP, folder, at=20, deed="half")["error"] == "killed"
    kept = {
        name: value for name, value in content(folder).items() if name.parts[0] == "checkpoints"
    }
    assert "begun on other training images" in fakes(CHEAP, folder, images=250)["error"]
    assert kept.items() <= content(folder).items()
    assert fakes(CHEAP, folder)["error"] is None
    assert_same_run(folder, fake_undisturbed[0])


def test_files_of_others_are_left_alone(fakes, tmp_path):
    for name in (".bashrc", ".env", "notes.txt"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_text("mine")
        assert "is not empty, and not a run" in fakes(CHEAP, folder)["error"]
        assert (folder / name).read_text() == "mine"
    folder = tmp_path / "run"
    fakes(CHEAP, folder, at=20, deed="half")
    (folder / ".note").write_text("mine")
    assert fakes(CHEAP, folder)["error"] is None and (folder / ".note").read_text() == "mine"


# Checkpoints that are damaged


def flipped(content, number, seed=0):
    random = np.random.default_rng(seed)
    damaged = bytearray(content)
    for place in random.integers(0, 8 * len(content), number):
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def of_another_network(path):
    arrays, history = read_checkpoint(path)
    other = {name: value for name, value in arrays.items() if name != "net/001"}
    write_checkpoint(path.parent.parent, other, history)


DAMAGES = {
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes(), 20)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint at all"),
    "another epoch": lambda path: shutil.copy(path.with_name("epoch-0003.npz"), path),
    "another network": of_another_network,
}


@pytest.mark.slow  # each trains again; that damage is noticed, the next tests show on every bit
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(cut_off, undisturbed, damage):
    "The one before is used, and it says so; what comes out is the same."
    DAMAGES[damage](checkpoint_path(cut_off, 4))
    with pytest.warns(
        UserWarning,
        match=(
            r"^epoch-0004\.npz is skipped, for the one before it or the start: the checkpoint"
        ),
    ):
        run = train(CONFIG, cut_off, made_data(), progress=False)
    assert len(run.record["sessions"]) == 2
    assert_same_run(run.folder, undisturbed[0])


@pytest.mark.slow
def test_all_checkpoints_damaged(cut_off, undisturbed):
    for path in (cut_off / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning) as warned:
        train(CONFIG, cut_off, made_data(), progress=False)
    assert sum("is skipped" in str(one.message) for one in warned) >= 2
    assert_same_run(cut_off, undisturbed[0])


@pytest.fixture
def two_checkpoints(tmp_path):
    row = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5,
        "seconds": 1.0}
    arrays = {
        "net/000": np.arange(6.0),
        "net/001": np.eye(2, dtype=np.float32),
        "optimizer/000": np.array(7),
        "averaged/000": np.ones(3),
    }
    history = [row, row | {"epoch": 2}]
    write_checkpoint(tmp_path, arrays, history[:1])
    return tmp_path, write_checkpoint(
        tmp_path, {name: array + 1 for name, array in arrays.items()}, history
    )


@pytest.mark.filterwarnings("ignore:epoch-0002.npz is skipped")
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_each_flipped_bit_is_found_or_harmless(two_checkpoints, step):
    "After any flip either the second checkpoint is read as it was written, or the first is used."
    folder, path = two_checkpoints
    whole, outcomes = path.read_bytes(), set()
    sound = {epoch: read_checkpoint(checkpoint_path(folder, epoch)) for epoch in (1, 2)}
    for bit in range(0, 8 * len(whole), step):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        arrays, history = latest_checkpoint(folder)
        expected, _ = sound[len(history)]
        assert arrays.keys() == expected.keys(), bit
        assert all(
            np.array_equal(arrays[name], value) and arrays[name].dtype == value.dtype
            for name, value in expected.items()
        ), bit
        outcomes.add(len(history))
    assert outcomes == {1, 2}  # some bits of a zip file mean nothing to a reader


@pytest.mark.filterwarnings("ignore:epoch-0002.npz is skipped")
def test_a_checkpoint_cut_anywhere_is_passed_over(two_checkpoints):
    folder, path = two_checkpoints
    whole = path.read_bytes()
    for end in range(0, len(whole), 5):
        path.write_bytes(whole[:end])
        assert len(latest_checkpoint(folder)[1]) == 1


# Two processes


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def test_the_second_process_is_refused(fakes, tmp_path):
    folder = tmp_path / "run"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fakes, CHEAP, folder, pause=60, after=30)
        wait_for(folder / "log.csv")
        process, before = int((folder / "process").read_text()), content(folder)
        with pytest.raises(
            TrainError,
            match=(
                rf"run is in use by process {process}: wait for it, stop it, or name another folder"
            ),
        ):
            train(CHEAP, folder, made_data(), progress=False)
        with pytest.raises(TrainError, match=rf"in use by process {process}"):
            resume(folder, made_data(), progress=False)
        assert load_run(folder).status == "running" and [
            run.status for run in list_runs(tmp_path)
        ] == ["running"]
        assert content(folder) == before
        os.kill(process, signal.SIGKILL)
        assert first.result()["pid"] == process
    assert (
        load_run(folder).record["status"] == "running" and load_run(folder).status == "interrupted"
    )
    assert fakes(CHEAP, folder)["error"] is None


def test_many_processes_at_once(fakes, fake_undisturbed, tmp_path):
    "Eight start together, four times; whoever comes too late is refused or finds the run finished."
    for number in range(4):
        order = {"config": CHEAP, "folder": tmp_path / str(number), "pause": 0.01}
        answers = fakes.many(*[order] * 8)
        trained = [
            one["pid"] for one in answers if any(what.startswith("batch") for what in one["seen"])
        ]
        assert len(trained) == 1
        refused = [one["error"] for one in answers if one["error"]]
        # mostly the one that trains; or one that just saw that it is done
        someone = "|".join(str(one["pid"]) for one in answers)
        assert [
            error for error in refused if not re.search(rf"in use by process ({someone}):", error)
        ] == []
        assert_same_run(tmp_path / str(number), fake_undisturbed[0])


# A full disk


@pytest.mark.parametrize("deed", ["full", "full once"])
def test_the_disk_is_full_at_each_write(fakes, fake_undisturbed, tmp_path, deed):
    seen = fake_undisturbed[1]["seen"]
    writes = [at for at, what in enumerate(seen, 1) if what.startswith("write")]
    order = {"config": CHEAP, "deed": deed}
    answers = fakes.many(*({**order, "folder": tmp_path / str(at), "at": at} for at in writes))
    for at, answer in zip(writes, answers):
        name, folder = seen[at - 1].split()[1], tmp_path / str(at)
        assert (
            answer["error"].startswith("TrainError")
            and f"{name} could not be written (No space left on device): make room" in answer[
                "error"
            ]
        )
        assert leftovers(folder) == []
        if (folder / "record.json").exists():
            run = load_run(folder)
            assert run.status == (
                "failed" if deed == "full once" and at < len(seen) else "interrupted"
            )
            finished = [
                int(what[12:16]) for what in seen[: at - 1] if what.startswith("write epoch")
            ]
            assert (
                len(latest_checkpoint(folder)[1]) if finished else latest_checkpoint(folder)
            ) == (max(finished) if finished else None)
    ended = fakes.many(*({"config": CHEAP, "folder": tmp_path / str(at)} for at in writes))
    assert [one["error"] for one in ended] == [None] * len(writes)
    for at in writes:
        assert_same_run(tmp_path / str(at), fake_undisturbed[0])


@contextmanager
def small_disk(folder, size):
    "A file system of its own; only root may make one."
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(
    not shutil.which("mount") or os.geteuid() != 0, reason="only root can mount a small file system"
)
def test_a_disk_that_is_really_full(fakes, tmp_path):
    assert fakes(CHEAP, tmp_path / "whole", size=20_000)["error"] is None
    with small_disk(tmp_path / "disk", "400k") as disk:  # two checkpoints of 160 kB, no third
        answer = fakes(CHEAP, disk / "run", size=20_000)
        assert (
            "epoch-0003.npz could not be written (No space left on device): make room" in answer[
                "error"
            ]
        )
        run = load_run(disk / "run")
        assert (
            run.status == "failed"
            and "No space left" in run.record["reason"]
            and list(run.checkpoints) == [1, 2]
        )
        assert (
            len(latest_checkpoint(run.folder)[1]) == len(run.history) == 2
            and leftovers(run.folder) == []
        )
        assert "No space left" in fakes(CHEAP, disk / "run", size=20_000)["error"]  # still full
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert fakes(CHEAP, disk / "run", size=20_000)["error"] is None
        assert_same_run(disk / "run", tmp_path / "whole")


@contextmanager
def file_size_limit(size):
    "No file may grow beyond `size` bytes: the nearest thing to a full disk that needs no root."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_the_disk_is_full_when_keras_saves(cut_off, undisturbed):
    with file_size_limit(200_000), pytest.raises(
        TrainError,
        match=(
            r"model\.keras could not be written .*: make room, or use another folder; earlier files"
            r" are intact"
        ),
    ):
        train(CONFIG, cut_off, made_data(), progress=False)
    run = load_run(cut_off)
    assert (
        run.status == "failed"
        and "could not be written" in run.record["reason"]
        and leftovers(cut_off) == []
    )
    train(CONFIG, cut_off, made_data(), progress=False)
    assert_same_run(cut_off, undisturbed[0])


def test_a_failed_save_keeps_the_file_that_was_there(undisturbed, tmp_path):
    path = Path(shutil.copy(undisturbed[0] / "model.keras", tmp_path))
    model, before = load_run(undisturbed[0]).model(), path.read_bytes()
    with file_size_limit(100_000), pytest.raises(TrainError, match="could not be written"):
        save_model(model, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.keras"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(fakes, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert fakes(CHEAP, tmp_path / "locked" / "run")["error"].startswith("TrainError: the folder")
    assert fakes(CHEAP, tmp_path / "locked")["error"].startswith("TrainError")


# A loss that is no number


def test_a_learning_rate_that_is_far_too_high(tmp_path):
    config = TrainConfig(
        epochs=2,
        batch_size=20,
        optimizer="sgd",
        learning_rate=10,
        schedule="constant",
        validation_size=40,
    )
    for _ in range(2):  # going on does not help, and says the same
        with pytest.raises(
            TrainError,
            match=(
                r"loss .*epoch \d.* is (nan|inf), expected a finite number: .* below 10, for"
                r" instance 1$"
            ),
        ):
            train(config, tmp_path / "run", made_data(), progress=False)
        run = load_run(tmp_path / "run")
        assert run.status == "failed" and "expected a finite number" in run.record["reason"]
        assert len(run.checkpoints) == len(run.history) and leftovers(run.folder) == []
        for path in run.checkpoints.values():
            assert all(np.isfinite(array).all() for array in read_checkpoint(path)[0].values())
        assert not (run.folder / "model.keras").exists()


def test_nan_in_a_later_epoch(cut_off, monkeypatch):
    def poisoned(config, labels, rows, epoch):
        inputs, wanted = real(config, labels, rows, epoch)
        return inputs, wanted * np.float32(np.nan)

    real = learner_room.epoch_inputs
    monkeypatch.setattr(learner_room, "epoch_inputs", poisoned)
    checkpoint_path(cut_off, 4).unlink()
    before = checkpoint_path(cut_off, 3).read_bytes()
    with pytest.raises(
        TrainError,
        match=r"the loss in epoch 4, batch \d+ is nan, .* below 0.001, for instance 0.0001",
    ):
        train(CONFIG, cut_off, made_data(), progress=False)
    run = load_run(cut_off)
    assert run.status == "failed" and "nan" in run.record["reason"] and len(run.history) == 3
    assert checkpoint_path(cut_off, 3).read_bytes() == before and 4 not in run.checkpoints
    assert len(latest_checkpoint(cut_off)[1]) == 3 and leftovers(cut_off) == []


# Ctrl-C


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_epoch(nursery, undisturbed, tmp_path):
    """The exception is lost on its way, as in a callback of native code; the training stops all the
    same."""
    seen, folder = undisturbed[1]["seen"], tmp_path / "run"
    at = 1 + seen.index(next(what for what in seen if what.endswith("of epoch 3")))
    answer = nursery(CONFIG, folder, at=at, deed="interrupt swallowed")
    assert (answer["error"], answer["status"]) == (
        f"Interrupted: interrupted after 2 of 4 epochs, which {folder} keeps",
        0,
    )
    assert set(answer["seen"][at:]) == {"write record.json"}
    run = load_run(folder)
    assert (
        run.status == run.record["status"] == "interrupted"
        and run.record["reason"] == "KeyboardInterrupt"
    )
    assert len(run.history) == 2 and leftovers(run.folder) == []
    assert nursery(CONFIG, folder)["error"] is None
    run = load_run(folder)
    assert len(run.record["sessions"]) == 2 and "reason" not in run.record
    assert_same_run(run.folder, undisturbed[0])


@pytest.mark.parametrize(
    "deed",
    [
        deed if deed == "interrupt swallowed" else pytest.param(deed, marks=pytest.mark.slow)
        for deed in CTRL_C
    ],
)
def test_ctrl_c_at_each_moment(fakes, fake_undisturbed, tmp_path, deed):
    """Once, swallowed by what calls us, or twice: it always ends, says how far it came, and resumes
    to the same result."""
    moments = range(1, len(fake_undisturbed[1]["seen"]) + 1)
    order = {"config": CHEAP, "deed": deed}
    answers = fakes.many(*({**order, "folder": tmp_path / str(at), "at": at} for at in moments))
    for at, answer in zip(moments, answers):
        folder = tmp_path / str(at)
        done = len((latest_checkpoint(folder) or (None, []))[1])
        assert (
            answer["error"]
            == f"Interrupted: interrupted after {done} of 4 epochs, which {folder} keeps"
        )
        assert (
            leftovers(folder) == []
            and sum(what.startswith("batch") for what in answer["seen"][at:]) <= 1
        )
        if (folder / "record.json").exists():
            assert (
                load_run(folder).status == "interrupted"
                or (folder / "model.keras").exists()
                and done == 4
            )
    ended = fakes.many(*({"config": CHEAP, "folder": tmp_path / str(at)} for at in moments))
    assert {one["error"] for one in ended} == {None}
    for at in moments:
        assert_same_run(tmp_path / str(at), fake_undisturbed[0])


@pytest.mark.slow
def test_ctrl_c_at_random_moments(nursery, undisturbed, tmp_path):
    random = np.random.default_rng(8)
    for _ in range(6):
        moment = {
            "after": float(random.uniform(0, undisturbed[1]["seconds"])),
            "signal": signal.SIGINT,
        }
        answer = nursery(CONFIG, tmp_path / "run", **moment)
        assert (
            answer["error"] is None
            or answer["error"].startswith(("Interrupted", "KeyboardInterrupt"))
            or answer["status"] == -signal.SIGINT
        )
    assert nursery(CONFIG, tmp_path / "run")["error"] is None
    assert_same_run(tmp_path / "run", undisturbed[0])


# Another back end

WITHOUT_TENSORFLOW = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "jax"
class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorboard"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTensorFlow())
sys.path.insert(0, sys.argv[1])
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest)
from small_runs import *
"""


def on_jax(code, *arguments):
    """Run code in a process that has JAX, but neither TensorFlow nor TensorBoard; returns what it
    prints last."""
    pytest.importorskip("jax")
    command = [
        sys.executable,
        "-c",
        WITHOUT_TENSORFLOW + code,
        str(Path(__file__).parent),
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


ON_JAX = """
config, folder = TrainConfig.from_json(sys.argv[2]), Path(sys.argv[3])
run = train(config, folder / "whole", made_data(), progress=False)
"""
LOADED = """
from fashion_nb.models.files import load_saved
model = load_saved(run.folder / "model.keras")
sums = model.predict(made_data().test.images, verbose=0).sum(axis=1)
np.testing.assert_allclose(sums, 1, atol=1e-5)
assert "tensorflow" not in sys.modules and "tensorboard" not in sys.modules
print(json.dumps(
    [run.record["backend"], run.record["tensorboard"], run.history.val_loss.tolist()]
))
"""
RESUMED = """
import shutil
from fashion_nb.training.loop import resume
shutil.copytree(run.folder, folder / "cut")
for path in ("model.keras", "checkpoints/epoch-0002.npz"):
    (folder / "cut" / path).unlink()
record = json.loads((folder / "cut" / "record.json").read_text())
(folder / "cut" / "record.json").write_text(json.dumps(record | {"status": "running"}))
resume(folder / "cut", made_data(), progress=False)
assert_same_run(folder / "cut", run.folder)
other = resume(Path(sys.argv[4]), made_data(), progress=False)
assert "tensorflow" not in sys.modules and "tensorboard" not in sys.modules
print(json.dumps([[one["backend"] for one in other.record["sessions"]], other.status]))
"""


def test_on_jax_without_tensorflow(tmp_path):
    "Train, and load the model; TensorFlow reads the weights that JAX has written."
    config = dataclasses.replace(CONFIG, epochs=2)
    backend, note, losses = on_jax(ON_JAX + LOADED, config.to_json(), tmp_path)
    assert backend == "jax" and note.startswith("not written: tensorboard not installed")
    assert losses[1] < losses[0]
    run = load_run(tmp_path / "whole")
    shapes = [variable.shape for variable in build_model(config.model).weights]
    assert [value.shape for value in run.model().get_weights()] == shapes


@pytest.mark.slow
def test_jax_resumes_to_the_same_weights_also_what_tensorflow_began(cut_off, tmp_path):
    checkpoint_path(cut_off, 4).unlink()
    config = dataclasses.replace(CONFIG, epochs=2)
    backends, status = on_jax(ON_JAX + RESUMED, config.to_json(), tmp_path, cut_off)
    assert (backends, status) == (["tensorflow", "jax"], "finished")
    weights = [load_run(folder).model().get_weights() for folder in (cut_off, tmp_path / "whole")]
    assert [value.shape for value in weights[0]] == [value.shape for value in weights[1]]


ACCURACIES = """
from fashion_nb.data.fashion_mnist import load_fashion_mnist
whole = load_fashion_mnist()
part = Split(whole.train.images[:6000], whole.train.labels[:6000])
data = FashionMNIST(part, whole.test, "the first 6,000 images", whole.folder)
found = []
for seed in range(3):
    config = TrainConfig(
        epochs=3, validation_size=1000, seed=seed, augmentation="shift=1", average=0.9
    )
    run = train(config, f"{sys.argv[2]}/{seed}", data, progress=False)
    found.append(float(run.history.val_accuracy.iloc[-1]))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_jax_and_tensorflow_are_equally_accurate(tmp_path):
    on = {"jax": on_jax(ACCURACIES, tmp_path / "jax")}
    command = [
        sys.executable,
        "-c",
        "import sys, json\nsys.path.insert(0, sys.argv[1])\nfrom small_runs import *\n"
        + ACCURACIES,
    ]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [*command, str(Path(__file__).parent), str(tmp_path / "tf")],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    on["tensorflow"] = json.loads(done.stdout.splitlines()[-1])
    print(on)
    means, spread = {name: np.mean(found) for name, found in on.items()}, np.ptp(
        on["jax"]
    ) + np.ptp(on["tensorflow"])
    assert min(means.values()) > 0.75
    assert abs(means["jax"] - means["tensorflow"]) <= max(spread, 0.005), on
