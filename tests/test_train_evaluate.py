"""Faults of training and evaluation that do not belong into a chapter: bad values, broken folders, full disks, Ctrl-C."""
import dataclasses
import errno
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fashion_nb.train as train_module
from fashion_nb.data import DataError, FashionMNIST, Split
from fashion_nb.evaluate import EvaluateError, Evaluation, evaluate, load_evaluation, plot_mistakes, score, wilson_interval
from fashion_nb.train import LOG_COLUMNS, TrainConfig, TrainError, load_run, save_model, train

SMALL = TrainConfig(epochs=1, batch_size=32, validation_size=40)


def made_split(size, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.uint8) % 10
    images = random.integers(0, 60, (size, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 4] += 150
    return Split(images, labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return FashionMNIST(made_split(240, 0), made_split(50, 1), "made for the tests", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(SMALL, tmp_path_factory.mktemp("runs") / "finished", data, progress=False)


@pytest.fixture
def run_folder(finished, tmp_path):
    "A copy of a finished run, to be damaged."
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture(scope="module")
def evaluation(finished, data):
    return evaluate(finished, data)


@contextmanager
def file_size_limit(size):
    "No file may grow beyond `size` bytes: the nearest thing to a full disk that needs no root."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def leftovers(folder):
    return [path.name for path in Path(folder).rglob(".*")]


# Configuration


@pytest.mark.parametrize("field", ["epochs", "batch_size", "validation_size", "seed"])
@pytest.mark.parametrize("value", [-1, 10**12, 1.5, True, "3", None, math.nan, [1]])
def test_whole_numbers_are_checked(field, value):
    with pytest.raises(TrainError, match=rf"^{field} is .*: expected a whole number from [\d,]+ to [\d,]+$"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan, math.inf, "fast", None, True])
def test_learning_rate_is_checked(value):
    with pytest.raises(TrainError, match=r"^learning_rate is .*: expected a number above 0, at most 1$"):
        TrainConfig(learning_rate=value)


@pytest.mark.parametrize("value", ["resnet_152", "", None, 3, ["stride_2"], "Stride_2"])
def test_model_is_checked(value):
    with pytest.raises(TrainError, match=r"^model is .*: expected one of stride_1, stride_2"):
        TrainConfig(model=value)


def test_all_problems_are_named_at_once():
    with pytest.raises(TrainError) as error:
        TrainConfig("x", 0, 0, 0, 0, -1)
    assert [part.split()[0] for part in str(error.value).split("; ")] == [
        "model", "epochs", "batch_size", "validation_size", "seed", "learning_rate",
    ]  # fmt: skip


def test_limits_themselves_are_allowed():
    TrainConfig(epochs=1, batch_size=1, validation_size=10, seed=0, learning_rate=1)
    TrainConfig(epochs=1_000, batch_size=60_000, validation_size=59_990, seed=2**32 - 1, learning_rate=1e-12)


def test_numpy_numbers_become_pythons():
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(1))
    assert json.loads(config.to_json())["epochs"] == 3
    assert [type(value) for value in dataclasses.astuple(config)] == [str, int, int, float, int, int]
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"epochs": 2,}', '{"epochs": "2"}', '{"epoch": 2}', '{"model": {}}'])
def test_bad_json_is_refused(text):
    with pytest.raises(TrainError):
        TrainConfig.from_json(text)


# Training


def test_every_field_changes_the_result(data, finished, tmp_path):
    weights = [weight.ravel() for weight in finished.model().get_weights()]
    changes = {"model": "stride_1", "epochs": 2, "batch_size": 16, "learning_rate": 0.001, "validation_size": 50, "seed": 1}
    for field, value in changes.items():
        run = train(dataclasses.replace(SMALL, **{field: value}), tmp_path / field, data, progress=False)
        others = [weight.ravel() for weight in run.model().get_weights()]
        assert not np.array_equal(np.concatenate(weights), np.concatenate(others)), field
        assert len(run.history) == run.config.epochs


def test_a_finished_run_leaves_no_temporary_file(finished):
    assert leftovers(finished.folder) == []
    assert finished.record["status"] == "finished" and finished.record["seconds"] > 0
    assert finished.record["training_images"] == 200 and finished.record["validation_images"] == 40
    assert tuple(finished.history.columns) == LOG_COLUMNS


def test_a_folder_in_use_is_refused_and_left_alone(finished, data):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    with pytest.raises(TrainError, match="is not empty"):
        train(SMALL, finished.folder, data)
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}


def test_default_folder_is_new_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {train_module._new_folder(None, SMALL) for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() and folder.parent == Path("runs") for folder in folders)


def test_runs_may_be_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("in the way")
    with pytest.raises(TrainError, match="cannot be made"):
        train_module._new_folder(None, SMALL)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path, data):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(TrainError, match="cannot be made|could not be written"):
        train(SMALL, tmp_path / "locked" / "run", data, progress=False)


def test_too_few_images_are_refused_before_a_folder_is_made(tmp_path, data):
    with pytest.raises(DataError, match="cannot hold out 5000"):
        train(TrainConfig(), tmp_path / "run", data, progress=False)
    assert not (tmp_path / "run").exists()


def stop_in_second_epoch(error):
    import keras

    def on_batch(batch, logs):
        if callback.epoch == 1 and batch == 2:
            raise error

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(callback, "epoch", epoch), on_train_batch_end=on_batch
    )
    return callback


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), "interrupted"), (RuntimeError("the device is gone"), "failed")])
def test_whatever_stops_it_the_record_is_true(tmp_path, data, monkeypatch, error, status):
    monkeypatch.setattr(train_module, "_follow", lambda bar: stop_in_second_epoch(error))
    with pytest.raises(type(error)):
        train(dataclasses.replace(SMALL, epochs=3), tmp_path / "run", data, progress=False)
    run = load_run(tmp_path / "run")
    assert run.record["status"] == status and run.record["reason"] == (str(error) or "KeyboardInterrupt")
    assert run.record["seconds"] > 0 and len(run.history) == 1
    assert [path.name for path in run.checkpoints] == ["epoch-01.keras"] and leftovers(run.folder) == []
    assert run.model().count_params() == 237_430


def test_nan_stops_at_once(tmp_path, data, monkeypatch):
    def poisoned(name):
        model = build(name)
        model.layers[-1].bias.assign(np.full(10, np.nan))
        return model

    build = train_module.build_model
    monkeypatch.setattr(train_module, "build_model", poisoned)
    with pytest.raises(TrainError, match=r"epoch 1, batch 1 is nan, .* learning rate below 0.004, for instance 0.0004"):
        train(SMALL, tmp_path / "run", data, progress=False)
    run = load_run(tmp_path / "run")
    assert run.record["status"] == "failed" and "nan" in run.record["reason"]
    assert run.checkpoints == [] and len(run.history) == 0
    with pytest.raises(TrainError, match="has no checkpoint"):
        run.model()


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, data, monkeypatch):
    keep, limits = train_module.save_model, []

    def fill_the_disk(model, path):
        if path.stem == "epoch-02":
            limits.append(file_size_limit(1_000_000))
            limits[0].__enter__()
        return keep(model, path)

    monkeypatch.setattr(train_module, "save_model", fill_the_disk)
    try:
        with pytest.raises(TrainError, match=r"epoch-02\.keras could not be written .* make room"):
            train(dataclasses.replace(SMALL, epochs=3), tmp_path / "run", data, progress=False)
    finally:
        limits[0].__exit__(None, None, None)
    run = load_run(tmp_path / "run")
    assert run.record["status"] == "failed" and [path.name for path in run.checkpoints] == ["epoch-01.keras"]
    assert leftovers(run.folder) == [] and run.model().count_params() == 237_430


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path, finished):
    path = tmp_path / "model.keras"
    save_model(finished.model(), path)
    before = path.read_bytes()
    with file_size_limit(100_000), pytest.raises(TrainError, match="could not be written"):
        save_model(finished.model(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.keras"]


def test_ctrl_c_on_a_real_process(tmp_path):
    code = f"""
import signal, sys
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_evaluate import *
data = FashionMNIST(made_split(3_000, 0), made_split(50, 1), "made", Path("."))
train(TrainConfig(epochs=1000, batch_size=256, validation_size=100), {str(tmp_path / "run")!r}, data, progress=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT or process.returncode == 130 or "KeyboardInterrupt" in errors, errors[-2000:]
    run = load_run(tmp_path / "run")
    assert run.record["status"] == "interrupted" and len(run.history) >= 1
    assert len(run.checkpoints) >= len(run.history) and leftovers(run.folder) == []
    assert run.model().count_params() == 237_430


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_shows_on_a_terminal_only(monkeypatch, is_terminal):
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", screen)
    with train_module._progress_bar(SMALL, batches=7, show=True) as bar:
        follow = train_module._follow(bar)
        for batch in range(7):
            follow.on_train_batch_end(batch, {})
        follow.on_epoch_end(0, {"val_accuracy": 0.875})
        bar.refresh()
    shown = screen.getvalue()
    assert ("7/7" in shown and "validation accuracy 87.5%" in shown) if is_terminal else shown == ""


def test_without_tensorboard_the_record_says_so(tmp_path, data, monkeypatch):
    find_spec = train_module.util.find_spec
    monkeypatch.setattr(train_module.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    run = train(SMALL, tmp_path / "run", data, progress=False)
    assert run.record["tensorboard"].startswith("not written: tensorboard not installed")
    assert not (run.folder / "tensorboard").exists()


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert train_module.git_commit() is None


def test_importing_costs_nothing():
    code = (
        "import sys, fashion_nb.train, fashion_nb.evaluate\n"
        "heavy = {'keras', 'tensorflow', 'jax', 'sklearn', 'pandas', 'matplotlib', 'seaborn', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# A run's folder


@pytest.mark.parametrize("name", ["config.json", "record.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "list", "missing", "folder"])
def test_broken_json_in_a_run(run_folder, name, damage):
    path = run_folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "binary": b"\xff\xfe\x00", "list": b"[1]"}[damage])
    with pytest.raises(TrainError, match=name.split(".")[0]):
        load_run(run_folder)


@pytest.mark.parametrize("values", [{"model": "gone"}, {"epochs": 0}, {"colour": "red"}])
def test_config_of_another_package(run_folder, values):
    path = run_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(TrainError, match="is not a run that can be used"):
        load_run(run_folder)


@pytest.mark.parametrize("content", ["", "epoch,loss\n1,0.5\n", "HEADER\n1,0.5,0.8\n", "HEADER\n1,a,b,c,d,e\n", "HEADER\n1,1,1,1,1,1,1,1\n", "\0"])
def test_damaged_log(run_folder, content):
    (run_folder / "log.csv").write_text(content.replace("HEADER", ",".join(LOG_COLUMNS)))
    with pytest.raises(TrainError, match=r"log\.csv"):
        load_run(run_folder)


def test_a_run_without_a_log_yet(run_folder):
    (run_folder / "log.csv").unlink()
    run = load_run(run_folder)
    assert len(run.history) == 0 and tuple(run.history.columns) == LOG_COLUMNS
    assert "none yet" in run._repr_html_()


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(TrainError, match="is not a folder"):
            load_run(path)


def test_the_last_checkpoint_is_the_highest_number(run_folder):
    first = run_folder / "checkpoints" / "epoch-01.keras"
    for name in ("epoch-09", "epoch-10", "epoch-100"):
        shutil.copy(first, first.with_name(f"{name}.keras"))
    first.with_name("epoch-x.keras").write_text("not ours")
    assert [path.stem for path in load_run(run_folder).checkpoints] == ["epoch-01", "epoch-09", "epoch-10", "epoch-100"]


# Evaluation


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_truncated_checkpoint(run_folder, data, share):
    path = load_run(run_folder).checkpoints[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrainError, match=r"epoch-01\.keras cannot be loaded as a Keras model"):
        load_run(run_folder).model()
    for given in (path, run_folder, str(run_folder), load_run(run_folder)):
        with pytest.raises(EvaluateError, match=r"epoch-01\.keras cannot be loaded as a Keras model"):
            evaluate(given, data)


def test_missing_checkpoint(run_folder, data):
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(EvaluateError, match="has no checkpoint"):
        evaluate(run_folder, data)


def test_not_a_model(tmp_path, data):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.keras").write_bytes(b"PK\x03\x04 but no zip")
    for given, said in {
        tmp_path / "empty": "is not a run",
        tmp_path / "notes.txt": "cannot be loaded",
        tmp_path / "fake.keras": "cannot be loaded",
        tmp_path / "gone.keras": "does not exist",
        "": "cannot be evaluated",
        None: "NoneType cannot be evaluated",
        7: "int cannot be evaluated",
    }.items():
        with pytest.raises(EvaluateError, match=said) as error:
            evaluate(given, data)
        assert "\n" not in str(error.value)


def network(shape=(28, 28, 1), units=10, activation="softmax"):
    import keras

    return keras.Sequential([keras.layers.Input(shape), keras.layers.Flatten(), keras.layers.Dense(units, activation=activation)])


def two_inputs():
    import keras

    one, two = keras.Input((28, 28, 1)), keras.Input((28, 28, 1))
    answer = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(keras.layers.Add()([one, two])))
    return keras.Model([one, two], answer)


def test_models_for_something_else(data):
    import keras

    for model, said in [
        (network(units=9), r"gives \(9,\): expected"),
        (network(units=1, activation="sigmoid"), r"gives \(1,\)"),
        (network(shape=(32, 32, 3)), r"takes \(32, 32, 3\)"),
        (network(shape=(28, 28)), r"takes \(28, 28\)"),
        (two_inputs(), "expected one that takes"),
        (keras.Sequential([keras.layers.Dense(10)]), "has no fixed shapes yet"),
        (network(activation=None), "are no probabilities"),
    ]:
        with pytest.raises(EvaluateError, match=said):
            evaluate(model, data)


def test_a_model_saved_elsewhere_can_be_evaluated(tmp_path, data):
    model = network()
    model.save(tmp_path / "mine.keras")
    ours = evaluate(str(tmp_path / "mine.keras"), data)
    assert ours.total == 50 and ours.model == model.name
    np.testing.assert_array_equal(ours.probabilities, evaluate(model, data).probabilities)


def test_nan_outputs_are_refused(data):
    model = network()
    model.layers[-1].bias.assign(np.full(10, np.nan))
    with pytest.raises(EvaluateError, match="are no probabilities"):
        evaluate(model, data)


def test_a_class_that_is_never_predicted_warns_of_nothing():
    labels = np.arange(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy = score(labels, np.eye(10)[np.zeros(10, int)])
    assert lazy.right == 1 and lazy.per_class.precision["Bag"] == 0 and lazy.per_class.f1["Bag"] == 0
    assert json.loads(lazy.to_json())["per_class"]["Bag"]["precision"] == 0


def test_all_wrong_and_all_right():
    labels = np.repeat(np.arange(10), 3)
    wrong, right = (score(labels, np.eye(10)[(labels + shift) % 10]) for shift in (1, 0))
    assert wrong.hit_rate == 0 and wrong.interval[0] == 0 < wrong.interval[1] < 0.2
    assert right.hit_rate == 1 and right.interval[1] == 1 > right.interval[0] > 0.8
    assert len(plot_mistakes(right, np.zeros((30, 28, 28, 1)))) == 0


@pytest.mark.parametrize("arguments", [(-1, 10), (11, 10), (0, 0), (1, 10, 0), (1, 10, 1), (1, 10, 1.5), (math.nan, 10)])
def test_impossible_intervals(arguments):
    with pytest.raises(EvaluateError, match="no interval"):
        wilson_interval(*arguments)


def test_saved_and_read_back(evaluation, tmp_path):
    back = load_evaluation(evaluation.save(tmp_path / "new" / "folder"))
    assert back.to_json() == evaluation.to_json() and back.to_text() == evaluation.to_text()
    assert back.probabilities.dtype == np.float32 and back.details == evaluation.details
    again = score(back.labels, np.eye(10)[back.predictions], back.model, back.details)
    assert again.to_json() == evaluation.to_json()
    (tmp_path / "new" / "folder" / "probabilities.npz").unlink()
    assert load_evaluation(tmp_path / "new" / "folder").probabilities is None
    assert leftovers(tmp_path) == []


def test_metrics_cut_anywhere_are_refused(evaluation):
    text = evaluation.to_json().rstrip()
    for end in np.linspace(0, len(text) - 1, 60).astype(int):
        with pytest.raises(EvaluateError):
            Evaluation.from_json(text[:end])


@pytest.mark.parametrize("name", ["model", "images", "right", "per_class", "averages", "confusion", "details"])
@pytest.mark.parametrize("value", [None, [], {}, "x", -1])
def test_metrics_with_a_wrong_value_are_refused(evaluation, name, value):
    values = json.loads(evaluation.to_json())
    if (name == "model" and value == "x") or (name == "details" and value in ({}, [])):
        return  # these are fine
    with pytest.raises(EvaluateError):
        Evaluation.from_json(json.dumps(values | {name: value}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_broken_probabilities(evaluation, tmp_path, content):
    evaluation.save(tmp_path)
    (tmp_path / "probabilities.npz").write_bytes(content)
    with pytest.raises(EvaluateError, match="has no evaluation that can be read"):
        load_evaluation(tmp_path)


def test_probabilities_of_another_evaluation(evaluation, tmp_path):
    evaluation.save(tmp_path)
    other = score(np.arange(10), np.eye(10))
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "probabilities.npz", tmp_path)
    with pytest.raises(EvaluateError, match="do not belong"):
        load_evaluation(tmp_path)


def test_a_full_disk_leaves_the_old_results(evaluation, tmp_path, monkeypatch):
    evaluation.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EvaluateError, match="No space left on device"):
        evaluation.save(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


# Another back end


def test_on_jax_without_tensorflow(tmp_path):
    pytest.importorskip("jax")
    code = f"""
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorboard"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTensorFlow())
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_evaluate import *
find_spec = train_module.util.find_spec
train_module.util.find_spec = lambda name: find_spec(name) if name == "fashion_nb" else None
data = FashionMNIST(made_split(240, 0), made_split(50, 1), "made", Path("."))
run = train(SMALL, {str(tmp_path / "run")!r}, data, progress=False)
assert run.record["backend"] == "jax" and run.record["tensorboard"].startswith("not written: tensorflow and tensorboard")
assert evaluate(run, data).total == 50 and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
