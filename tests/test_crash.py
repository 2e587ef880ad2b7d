"""What the system refuses, what is damaged and what nobody expected: one sentence, never a
traceback, and nothing waits for ever."""
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
from commands import fashion_nb, in_a_process
from small_runs import made_data

from fashion_nb.evaluation.evaluation import evaluate
from fashion_nb.training.checkpoints import CheckpointError, list_checkpoints, read_checkpoint
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import resume, train
from fashion_nb.training.runs import list_runs, load_run
from fashion_nb.training.schedules import TrainError

SMALL = TrainConfig(model="conv4/4 gap", epochs=2, batch_size=60, validation_size=40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(SMALL, folder / "good", made_data(), progress=False)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    "A folder with a good run and one that will be damaged."
    for name in ("good", "bad"):
        shutil.copytree(trained / "good", tmp_path / name)
    return tmp_path


def one_line(answer, status=2):
    "A refusal in one sentence."
    assert answer.returncode == status, answer.stderr
    assert answer.stderr.startswith("fashion_nb: ") and answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr
    return answer.stderr


# ---------------------------------------------------------------- the system

@pytest.mark.parametrize("arguments", [("data",), ("models",), ("cost", "stride_2"), ("--help",)])
def test_the_output_is_full(arguments):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "fashion_nb", *arguments], stdout=full, stderr=subprocess.PIPE,
            text=True,
        )
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert "No space left on device" in run.stderr


def test_whoever_reads_may_stop():
    command = f"{sys.executable} -m fashion_nb models | head -1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stdout == "stride_1\n" and not run.stderr


COMMANDS = [
    ("data", "--folder", "{}"),
    ("cost", "{}.keras"),
    ("field", "{}.keras"),
    ("train", "--folder", "{}", "--epochs", "1"),
    ("train", "--config", "{}"),
    ("runs", "{}"),
    ("evaluate", "{}"),
    ("predict", "{}"),
    ("leaderboard", "--results", "{}"),
    ("experiments", "run", "{}.json"),
    ("explore", "--folder", "{}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", ["n" * 300, "~no-such-user/x", "/dev/zero/x"])
def test_names_that_no_file_can_have(command, name, tmp_path):
    one_line(fashion_nb(*(word.format(name) for word in command), cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_that_may_not_be_entered(command, tmp_path):
    "Whoever is root may enter everything, so the system is made to refuse as it would a user."
    place, real = tmp_path / "locked" / "thing", os.stat

    def refuses(path, *args, **options):
        if isinstance(path, (str, os.PathLike)) and "locked" in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **options)

    with mock.patch("os.stat", refuses):
        answer = fashion_nb(*(word.format(place) for word in command), cwd=tmp_path)
    one_line(answer)


def test_a_description_of_many_blocks_is_no_file_name():
    answer = fashion_nb("cost", "conv8 " * 60 + "flat", "--json")
    assert answer.returncode == 0 and json.loads(answer.stdout)["total"]["macs"] > 0


def test_debug_shows_where():
    with mock.patch("fashion_nb.models.zoo.list_models", side_effect=ZeroDivisionError("oh")):
        assert "ZeroDivisionError: oh" in one_line(fashion_nb("models"), status=1)
        for arguments in (("--debug", "models"), ("models", "--debug")):
            answer = fashion_nb(*arguments)
            assert answer.returncode == 1 and "Traceback" in answer.stderr


# ---------------------------------------------------------------- no files, or endless ones


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nobody_waits_at_a_pipe(command, pipe):
    for suffix in (".keras", ".json"):
        os.mkfifo(f"{pipe}{suffix}")
    arguments = [word.format(pipe) for word in command]
    one_line(in_a_process(*arguments, cwd=pipe.parent))


def test_what_is_endless_is_not_read(tmp_path):
    assert "not a regular file" in one_line(fashion_nb("train", "--config", "/dev/zero"))
    (tmp_path / "grid.json").symlink_to("/dev/zero")
    assert "regular file" in one_line(fashion_nb("experiments", "run", tmp_path / "grid.json"))


def test_a_pipe_in_the_cache_is_skipped(pipe, packed, empty_home, monkeypatch):
    cache = empty_home / ".cache" / "fashion_nb"
    cache.mkdir(parents=True)
    os.mkfifo(cache / "train-images-idx3-ubyte")
    (empty_home / ".keras/datasets").mkdir(parents=True)
    (empty_home / ".keras/datasets/fashion-mnist").symlink_to(packed)
    answer = in_a_process("data", HOME=str(empty_home), XDG_CACHE_HOME=str(empty_home / ".cache"))
    assert answer.returncode == 0 and "not a regular file" in answer.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "\x00", "[1", '"\\ud800"'])
def test_json_that_is_none_of_ours(text, tmp_path):
    (tmp_path / "deep.json").write_text(text)
    one_line(fashion_nb("train", "--config", tmp_path / "deep.json"))
    one_line(fashion_nb("experiments", "run", tmp_path / "deep.json"))


def test_a_link_in_the_place_of_a_download_is_not_followed(tmp_path, monkeypatch):
    from fashion_nb.data import sources
    from fashion_nb.data.idx import FILES

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = tmp_path / "cache" / "fashion_nb"
    target.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("mine")
    (target / f"{FILES[1].name}.download").symlink_to(victim)
    with pytest.raises(sources.DownloadError):
        sources.download(FILES[1], ("http://127.0.0.1:9/",), tries=1, pause=0)
    assert [path.name for path in victim.iterdir()] == ["precious"]


# ---------------------------------------------------------------- damaged records

DAMAGES = {
    "no object": "[]",
    "no status": "{}",
    "status of another kind": '{"status": 3}',
    "openings of another kind": '{"status": "finished", "test_opened": 7}',
    "sessions of another kind": '{"status": "finished", "sessions": {"a": 1}}',
    "data of another kind": '{"status": "finished", "data": []}',
    "seconds of another kind": '{"status": "finished", "seconds": "long"}',
    "deep": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "cut": '{"status": "fini',
    "empty": "",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["record.json", "config.json"])
def test_a_damaged_neighbor_is_named_and_the_others_are_listed(file, damage, runs):
    text = DAMAGES[damage]
    (runs / "bad" / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    if file == "config.json" and damage == "no status":
        return  # an object without a field: all defaults
    with pytest.warns(UserWarning, match="left out: .*bad") as heard:
        assert [run.folder.name for run in list_runs(runs)] == ["good"]
    assert len(heard) == 1
    answer = fashion_nb("runs", runs)
    assert answer.returncode == 0 and "good" in answer.stdout and "bad" in answer.stderr
    with pytest.raises(TrainError):
        load_run(runs / "bad")
    with pytest.raises(TrainError):
        resume(runs / "bad", made_data(), progress=False)
    one_line(fashion_nb("train", "--resume", "--folder", runs / "bad"))
    one_line(fashion_nb("evaluate", runs / "bad"))


@pytest.mark.parametrize("field", ["sessions", "data"])
def test_a_record_that_cannot_be_resumed(field, runs):
    record = json.loads((runs / "bad/record.json").read_text())
    del record[field]
    (runs / "bad/record.json").write_text(json.dumps(record | {"status": "interrupted"}))
    with pytest.raises(TrainError, match=f"it lacks {field}"):
        resume(runs / "bad", made_data(), progress=False)


@pytest.mark.parametrize(
    "about",
    ["{}", "[]", '{"arrays": 3, "history": []}', '{"arrays": [], "history": [{}]}', "[" * 9_999],
)
def test_a_checkpoint_whose_description_is_damaged(about, runs):
    import numpy as np

    path = max(list_checkpoints(runs / "bad").values())
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    np.savez(path, **kept | {"about": np.array(about)})
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(path)


def test_a_run_whose_folder_is_removed_stops_and_says_so(tmp_path):
    from fashion_nb.training.learner import Watcher

    folder, epoch = tmp_path / "run", Watcher.epoch

    def remove(watcher, history):
        shutil.rmtree(folder)
        epoch(watcher, history)

    with mock.patch.object(Watcher, "epoch", remove):
        with pytest.raises(TrainError, match="is gone: it was removed while the run was in it"):
            train(replace(SMALL, epochs=5), folder, made_data(), progress=False)
    assert not folder.exists() or not list(folder.glob("*.json"))


# ---------------------------------------------------------------- names that Keras allows


@pytest.mark.parametrize("name", ["my net", "a|b", "50%", "größe", "a:b", "(x)"])
def test_a_model_of_any_name_is_evaluated(name):
    import keras

    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(name=f"{name}!"),
         keras.layers.Dense(10, activation="softmax")],
        name=name,
    )
    assert evaluate(model, data=made_data(), pixels="0..1").total == 50

