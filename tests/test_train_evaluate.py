"""Faults of runs and of evaluation that do not belong into a chapter: broken folders, models for
something else, bad metrics."""
import dataclasses
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from small_runs import leftovers, made_data

from fashion_nb.data.idx import DataError
from fashion_nb.evaluation.evaluation import evaluate
from fashion_nb.evaluation.metrics import EvaluateError, wilson_interval
from fashion_nb.evaluation.plots import plot_mistakes
from fashion_nb.evaluation.scores import Evaluation, load_evaluation, score
from fashion_nb.training import checkpoints as checkpoints_room
from fashion_nb.training import learner as learner_room
from fashion_nb.training import loop as loop_room
from fashion_nb.training import machine as machine_room
from fashion_nb.training.checkpoints import LOG_COLUMNS
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train
from fashion_nb.training.runs import load_run
from fashion_nb.training.schedules import (
    TrainError,
    make_optimizer,
    make_schedule,
    schedule_share,
)

SMALL = TrainConfig(epochs=1, batch_size=32, validation_size=40)


@pytest.fixture(scope="module")
def data():
    return made_data()


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(SMALL, tmp_path_factory.mktemp("runs") / "finished", data, progress=False)


@pytest.fixture
def run_folder(finished, tmp_path):
    "A copy of a finished run, to be damaged."
    return shutil.copytree(finished.folder, tmp_path / "run")


@pytest.fixture(scope="module")
def evaluation(finished, data):
    return evaluate(finished, data=data)


# Training


def test_a_finished_run_leaves_no_temporary_file(finished):
    assert leftovers(finished.folder) == []
    assert finished.record["status"] == "finished" and finished.record["seconds"] > 0
    assert finished.record["training_images"] == 200 and finished.record["validation_images"] == 40
    assert tuple(finished.history.columns) == LOG_COLUMNS


def test_a_folder_with_something_else_is_refused_and_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainError, match="is not empty, and not a run"):
        train(SMALL, tmp_path, data, progress=False)
    with pytest.raises(TrainError, match="is a file"):
        train(SMALL, tmp_path / "thesis.txt", data, progress=False)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_the_default_folder_is_named_after_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {
        loop_room.run_folder(config, None)
        for config in (SMALL, SMALL, dataclasses.replace(SMALL, epochs=2))
    }
    assert folders == {
        Path("runs") / f"stride_2-seed0-{dataclasses.replace(SMALL, epochs=epochs).identity}"
        for epochs in (1, 2)
    }


def test_runs_may_be_a_file(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("in the way")
    with pytest.raises(TrainError, match="cannot be made"):
        train(SMALL, data=data, progress=False)


def test_too_few_images_are_refused_before_a_folder_is_made(tmp_path, data):
    with pytest.raises(DataError, match="cannot hold out 5000"):
        train(TrainConfig(), tmp_path / "run", data, progress=False)
    assert not (tmp_path / "run").exists()


def test_whatever_stops_it_the_record_is_true(tmp_path, data, monkeypatch):
    def stop(watcher, epoch, number):
        if epoch == 2:
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(learner_room.Watcher, "batch", stop)
    with pytest.raises(RuntimeError):
        train(dataclasses.replace(SMALL, epochs=3), tmp_path / "run", data, progress=False)
    run = load_run(tmp_path / "run")
    assert run.status == "failed" and run.record["reason"] == "the device is gone"
    assert run.record["seconds"] > 0 and len(run.history) == 1
    assert list(run.checkpoints) == [1] and leftovers(run.folder) == []
    assert run.model().count_params() == 237_430


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_shows_on_a_terminal_only(monkeypatch, is_terminal):
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", screen)
    watcher = learner_room.Watcher(SMALL, batches=7, done=0, show=True)
    for batch in range(1, 8):
        watcher.batch(1, batch)
    watcher.epoch([{"epoch": 1, "loss": 0.5, "val_accuracy": 0.875}])
    watcher.bar.refresh()
    watcher.bar.close()
    shown = screen.getvalue()
    assert ("7/7" in shown and "validation accuracy 87.5%" in shown) if is_terminal else shown == ""


def scalars(folder):
    "By name, the step and value of each scalar that TensorBoard finds below a folder."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in tags["scalars"]}
    for name in tags["tensors"]:
        found[name] = [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(name)]
    return found


def test_tensorboard_reads_what_keras_own_callback_writes(tmp_path):
    import keras

    row = {"loss": 1 / 3, "accuracy": 0.5, "val_loss": 0.7, "val_accuracy": 0.6, "seconds": 1.0}
    rates = [0.1 * float(schedule_share(step, "cosine", 40)) for step in (10, 20)]
    history = [row | {"epoch": 1, "learning_rate": rates[0]}]
    history += [row | {"epoch": 2, "loss": 0.25, "val_loss": 0.65, "learning_rate": rates[1]}]
    checkpoints_room.tensorboard_log(tmp_path, history[:1])
    # resumed: no epoch is lost, none is doubled
    checkpoints_room.tensorboard_log(tmp_path, history)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(make_optimizer("sgd", make_schedule(0.1, "cosine", 40)))
    callback = keras.callbacks.TensorBoard(tmp_path / "keras", write_graph=False)
    callback.set_model(model)
    for number, epoch in enumerate(history):
        model.optimizer.iterations.assign(10 * (number + 1))
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        callback.on_epoch_end(number, {name: epoch[name] for name in names})
    callback.on_train_end()

    theirs = {name[6:]: values for name, values in scalars(tmp_path / "keras" / "train").items()}
    held_out = scalars(tmp_path / "keras" / "validation").items()
    theirs |= {f"val_{name[6:]}": values for name, values in held_out}
    ours = scalars(tmp_path / "tensorboard")
    assert theirs.keys() == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert ours.keys() == theirs.keys() | {"seconds"}
    for name, values in theirs.items():
        assert [step for step, _ in ours[name]] == [step + 1 for step, _ in values] == [1, 2]
        np.testing.assert_allclose([v for _, v in ours[name]], [v for _, v in values], rtol=1e-6)


def test_the_learning_rate_of_a_run_is_in_its_event_file(finished):
    steps = 7  # 200 images in batches of 32, all of the run: the cosine has come to its end
    [(epoch, value)] = scalars(finished.folder / "tensorboard")["learning_rate"]
    expected = SMALL.learning_rate * schedule_share(steps, SMALL.schedule, steps)
    assert epoch == 1 and value == pytest.approx(expected, abs=1e-9)


def test_without_tensorboard_the_record_says_so(tmp_path, monkeypatch):
    find_spec = checkpoints_room.util.find_spec
    monkeypatch.setattr(
        checkpoints_room.util,
        "find_spec",
        lambda name: None if name == "tensorboard" else find_spec(name),
    )
    assert checkpoints_room.tensorboard_log(tmp_path, []).startswith(
        "not written: tensorboard not installed"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine_room.git_commit() is None


def test_importing_costs_nothing():
    code = (
        "import sys, fashion_nb.training.loop, fashion_nb.evaluation.evaluation\n"
        "heavy = {'keras', 'tensorflow', 'jax',"
        " 'sklearn', 'pandas', 'matplotlib', 'seaborn', 'tqdm'} & set(sys.modules)\nassert not"
        " heavy, heavy"
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
        path.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "empty": b"",
                "binary": b"\xff\xfe\x00",
                "list": b"[1]",
            }[damage]
        )
    with pytest.raises(TrainError, match=name.split(".")[0]):
        load_run(run_folder)


@pytest.mark.parametrize("values", [{"model": "gone"}, {"epochs": 0}, {"color": "red"}])
def test_config_of_another_package(run_folder, values):
    path = run_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(TrainError, match="is not a run that can be used"):
        load_run(run_folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "epoch,loss\n1,0.5\n",
        "HEADER\n1,0.5,0.8\n",
        "HEADER\n1,a,b,c,d,e\n",
        "HEADER\n1,1,1,1,1,1,1,1\n",
        "\0",
    ],
)
def test_damaged_log(run_folder, content):
    (run_folder / "log.csv").write_text(content.replace("HEADER", ",".join(LOG_COLUMNS)))
    with pytest.raises(TrainError, match=r"log\.csv"):
        load_run(run_folder)


def test_a_run_without_a_log_yet(run_folder):
    (run_folder / "log.csv").unlink()
    run = load_run(run_folder)
    assert len(run.history) == 0 and tuple(run.history.columns) == LOG_COLUMNS
    assert "0 of 1" in run._repr_html_()
    # the first epoch is under way
    (run_folder / "log.csv").write_text(",".join(LOG_COLUMNS) + "\n")
    assert len(load_run(run_folder).history) == 0


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(TrainError, match="is not a folder"):
            load_run(path)


def test_the_last_checkpoint_is_the_highest_number(run_folder):
    first = run_folder / "checkpoints" / "epoch-0001.npz"
    for name in ("epoch-0009", "epoch-0010", "epoch-10000"):
        shutil.copy(first, first.with_name(f"{name}.npz"))
    first.with_name("epoch-x.npz").write_text("not ours")
    assert list(load_run(run_folder).checkpoints) == [1, 9, 10, 10_000]


# Evaluation


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.filterwarnings("ignore:epoch-0001.npz is skipped")
def test_truncated_checkpoint(run_folder, data, share):
    path = run_folder / "checkpoints" / "epoch-0001.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrainError, match="has no checkpoint"):
        load_run(run_folder).model()
    with pytest.raises(TrainError, match=r"epoch-0001\.npz is damaged"):
        load_run(run_folder).model(1)
    for given in (run_folder, str(run_folder), load_run(run_folder)):
        with pytest.raises(EvaluateError, match="has no checkpoint"):
            evaluate(given, data=data)
    path = run_folder / "model.keras"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(EvaluateError, match=r"model\.keras cannot be opened as a Keras model"):
        evaluate(path, data=data)


def test_missing_checkpoint(run_folder, data):
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(EvaluateError, match="has no checkpoint"):
        evaluate(run_folder, data=data)
    for which in ("best", 1, 7, "first"):
        with pytest.raises(TrainError, match="has no checkpoint of epoch"):
            load_run(run_folder).model(which)


def test_not_a_model(tmp_path, data):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.keras").write_bytes(b"PK\x03\x04 but no zip")
    for given, said in {
        tmp_path / "empty": "is not a run",
        tmp_path / "notes.txt": "cannot be opened",
        tmp_path / "fake.keras": "cannot be opened",
        tmp_path / "gone.keras": "does not exist",
        "": "cannot be evaluated",
        None: "NoneType cannot be evaluated",
        7: "int cannot be evaluated",
    }.items():
        with pytest.raises(EvaluateError, match=said) as error:
            evaluate(given, data=data)
        assert "\n" not in str(error.value)


def network(shape=(28, 28, 1), units=10, activation="softmax"):
    import keras

    return keras.Sequential([
        keras.layers.Input(shape),
        keras.layers.Flatten(),
        keras.layers.Dense(units, activation=activation),
    ])


def two_inputs():
    import keras

    one, two = keras.Input((28, 28, 1)), keras.Input((28, 28, 1))
    answer = keras.layers.Dense(10, activation="softmax")(
        keras.layers.Flatten()(keras.layers.Add()([one, two]))
    )
    return keras.Model([one, two], answer)


def test_models_for_something_else(data):
    import keras

    for model, said in [
        (network(units=9), r"gives \(9,\) for an image: expected"),
        (network(units=1, activation="sigmoid"), r"gives \(1,\)"),
        (network(shape=(32, 32, 3)), r"takes \(32, 32, 3\)"),
        (network(shape=(28, 27)), r"takes \(28, 27\)"),
        (two_inputs(), "several inputs or outputs"),
        (keras.Sequential([keras.layers.Dense(10)]), "has no fixed shapes yet"),
        (network(activation=None), "cannot be told.*state them with pixels="),
    ]:
        with pytest.raises(EvaluateError, match=said):
            evaluate(model, data=data)


def test_a_model_saved_elsewhere_can_be_evaluated(tmp_path, data):
    model = network()
    model.save(tmp_path / "mine.keras")
    ours = evaluate(str(tmp_path / "mine.keras"), data=data, pixels="0..1")
    assert ours.total == 50 and ours.model == model.name
    theirs = evaluate(model, data=data, pixels="0..1")
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_nan_outputs_are_refused(data):
    model = network()
    model.layers[-1].bias.assign(np.full(10, np.nan))
    with pytest.raises(EvaluateError, match="are not probabilities"):
        evaluate(model, data=data)


def test_a_class_that_is_never_predicted_warns_of_nothing():
    labels = np.arange(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy = score(labels, np.eye(10)[np.zeros(10, int)])
    assert (
        lazy.right == 1 and lazy.per_class.precision["Bag"] == 0 and lazy.per_class.f1["Bag"] == 0
    )
    assert json.loads(lazy.to_json())["per_class"]["Bag"]["precision"] == 0


def test_all_wrong_and_all_right():
    labels = np.repeat(np.arange(10), 3)
    wrong, right = (score(labels, np.eye(10)[(labels + shift) % 10]) for shift in (1, 0))
    assert wrong.accuracy == 0 and wrong.interval[0] == 0 < wrong.interval[1] < 0.2
    assert right.accuracy == 1 and right.interval[1] == 1 > right.interval[0] > 0.8
    assert len(plot_mistakes(right, np.zeros((30, 28, 28, 1)))) == 0


@pytest.mark.parametrize(
    "arguments", [(-1, 10), (11, 10), (0, 0), (1, 10, 0), (1, 10, 1), (1, 10, 1.5), (math.nan, 10)]
)
def test_impossible_intervals(arguments):
    with pytest.raises(EvaluateError, match="no interval"):
        wilson_interval(*arguments)


def test_saved_and_read_back(evaluation, tmp_path):
    back = load_evaluation(evaluation.save(tmp_path / "new" / "folder"))
    assert back.to_json() == evaluation.to_json() and back.to_text() == evaluation.to_text()
    assert back.probabilities.dtype == np.float32 and back.details == evaluation.details
    again = score(back.labels, back.probabilities, back.model, back.details)
    assert again.confusion.tolist() == evaluation.confusion.tolist() and again.per_class.equals(
        evaluation.per_class
    )
    (tmp_path / "new" / "folder" / "probabilities.npz").unlink()
    assert load_evaluation(tmp_path / "new" / "folder").probabilities is None
    assert leftovers(tmp_path) == []


def test_metrics_cut_anywhere_are_refused(evaluation):
    text = evaluation.to_json().rstrip()
    for end in np.linspace(0, len(text) - 1, 60).astype(int):
        with pytest.raises(EvaluateError):
            Evaluation.from_json(text[:end])


@pytest.mark.parametrize(
    "name", ["model", "images", "right", "per_class", "averages", "confusion", "details"]
)
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
