"""What is said of a trained network: the figures against other ways to compute them, the splits,
the counter, the files."""
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fashion_nb.data.fashion_mnist import FashionMNIST, Split, split_validation
from fashion_nb.data.idx import CLASS_NAMES
from fashion_nb.evaluation.evaluation import evaluate, run_split
from fashion_nb.evaluation.metrics import (
    SMALLEST,
    EvaluateError,
    brier_score,
    calibration,
    negative_log_likelihood,
)
from fashion_nb.evaluation.plots import (
    PUBLISHED_ACCURACY,
    accuracy_table,
    plot_reliability,
    results_table,
)
from fashion_nb.evaluation.scores import (
    Evaluation,
    from_half,
    load_evaluation,
    score,
    to_half,
)
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train
from fashion_nb.training.runs import load_run

SMALL = TrainConfig(epochs=1, batch_size=32, validation_size=40, seed=3)


def made_split(size, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.uint8) % 10
    images = random.integers(0, 60, (size, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[:, 2 * label : 2 * label + 4] += 150  # upright bars: a mirror moves them
    return Split(images, labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return FashionMNIST(
        made_split(240, 0), made_split(50, 1), "made for the tests", tmp_path_factory.mktemp("data")
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(SMALL, tmp_path_factory.mktemp("runs") / "finished", data, progress=False)


@pytest.fixture
def run(finished, tmp_path):
    "A copy of the finished run that no test has opened."
    return load_run(shutil.copytree(finished.folder, tmp_path / "run"))


def record_of(run):
    return json.loads((run.folder / "record.json").read_text())


def network(flipped=False):
    "Ten probabilities from the columns of an image."
    import keras

    inputs = keras.Input((28, 28, 1))
    columns = (
        keras.ops.mean(inputs, axis=(1, 3))[:, ::-1]
        if flipped
        else keras.ops.mean(inputs, axis=(1, 3))
    )
    return keras.Model(inputs, keras.ops.softmax(columns[:, 2:12] / 20))


def drawn(size, seed=0, sharpness=0.2):
    random = np.random.default_rng(seed)
    return random.integers(0, 10, size), random.dirichlet(np.full(10, sharpness), size)


# Loss and Brier score


@pytest.mark.parametrize("sharpness", [0.05, 0.5, 5])
def test_loss_and_brier_by_their_formulas(sharpness):
    labels, rows = drawn(500, 1, sharpness)
    raised = [
        max(row[label], SMALLEST) / sum(max(p, SMALLEST) for p in row)
        for label, row in zip(labels, rows)
    ]
    assert negative_log_likelihood(labels, rows) == pytest.approx(
        -sum(map(math.log, raised)) / 500, rel=1e-9
    )
    squares = [
        sum((p - (c == label)) ** 2 for c, p in enumerate(row)) for label, row in zip(labels, rows)
    ]
    assert brier_score(labels, rows) == pytest.approx(sum(squares) / 500, rel=1e-9)


def test_guessing_and_certainty():
    labels = np.arange(10)
    guess, right, wrong = np.full((10, 10), 0.1), np.eye(10), np.eye(10)[::-1]
    assert negative_log_likelihood(labels, guess) == pytest.approx(math.log(10))
    assert negative_log_likelihood(labels, right) == pytest.approx(0, abs=1e-6)
    assert negative_log_likelihood(labels, wrong) == pytest.approx(24 * math.log(2), abs=1e-5)
    assert [brier_score(labels, rows) for rows in (guess, right, wrong)] == pytest.approx(
        [0.9, 0, 2]
    )


# Calibration


def by_loops(labels, rows, edges):
    "The error and the filled bins, image by image."
    found = []
    for low, high in zip(edges[:-1], edges[1:]):
        inside = [
            i
            for i, row in enumerate(rows)
            if low < row.max() <= high or (row.max() == low == edges[0])
        ]
        if inside:
            right = sum(rows[i].argmax() == labels[i] for i in inside) / len(inside)
            found.append((len(inside), sum(rows[i].max() for i in inside) / len(inside), right))
    return sum(n * abs(right - sure) for n, sure, right in found) / len(labels), found


@pytest.mark.parametrize("bins", [1, 2, 15, 100])
@pytest.mark.parametrize("sharpness", [0.02, 0.3, 3])
def test_calibration_by_loops(bins, sharpness):
    labels, rows = drawn(300, 2, sharpness)
    sure = rows.max(axis=1)
    for adaptive, edges in (
        (False, np.linspace(0, 1, bins + 1)),
        (True, np.percentile(sure, 100 * np.linspace(0, 1, bins + 1))),
    ):
        ours = calibration(labels, rows, bins, adaptive)
        error, found = by_loops(labels, rows, edges)
        assert ours.error == pytest.approx(error, abs=1e-12)
        np.testing.assert_allclose(
            ours.table[["images", "confidence", "accuracy"]], found, atol=1e-12
        )
        assert ours.overconfidence == pytest.approx(
            sure.mean() - (rows.argmax(axis=1) == labels).mean(), abs=1e-12
        )
        assert abs(ours.overconfidence) <= ours.error + 1e-12


def test_one_bin_is_the_overconfidence():
    labels, rows = drawn(100)
    one = calibration(labels, rows, 1)
    assert one.error == pytest.approx(abs(one.overconfidence)) and len(one.table) == 1


def test_a_border_belongs_to_the_bin_below():
    rows = np.array([[0.8, 0.2], [0.75, 0.25], [0.6, 0.4]])
    table = calibration([0, 0, 0], rows, 4).table
    assert table.high.tolist() == [0.75, 1.0] and table.images.tolist() == [2, 1]


def test_answers_of_one_confidence_share_a_bin():
    labels = np.arange(30) % 10
    for adaptive in (False, True):
        everything = calibration(labels, np.eye(10)[np.zeros(30, int)], 15, adaptive)
        assert everything.table.images.tolist() == [30] and everything.error == pytest.approx(0.9)
        single = calibration(labels[:1], np.eye(10)[:1], 15, adaptive)
        assert single.table.images.tolist() == [1] and single.error == 0


def test_adaptive_bins_hold_equally_many():
    labels, rows = drawn(1_500, 4)
    assert calibration(labels, rows, 15, adaptive=True).table.images.tolist() == [100] * 15
    assert calibration(labels, rows, 15).table.images.std() > 20
    assert calibration(labels, rows, 10).error != calibration(labels, rows, 15).error


@pytest.mark.parametrize("bins", [0, -1, 1.5, True, "15", None])
def test_impossible_bins(bins):
    with pytest.raises(EvaluateError, match="expected a whole number of at least 1"):
        calibration(*drawn(10), bins)


# Two bytes


@pytest.mark.parametrize("sharpness", [0.005, 0.05, 0.5, 50])
def test_two_bytes_keep_the_answer_and_nearly_the_rest(sharpness):
    labels, rows = drawn(5_000, 5, sharpness)
    rows = rows.astype(np.float32)
    back = from_half(to_half(rows))
    assert to_half(rows).dtype == np.float16 and back.dtype == np.float32
    np.testing.assert_array_equal(back.argmax(axis=1), rows.argmax(axis=1))
    np.testing.assert_allclose(back, rows, atol=1e-3)
    np.testing.assert_allclose(back.sum(axis=1), 1, atol=1e-3)
    sure = rows.max(axis=1) > 0.999
    np.testing.assert_allclose(back[sure].max(axis=1), rows[sure].max(axis=1), atol=2e-6)
    assert negative_log_likelihood(labels, back) == pytest.approx(
        negative_log_likelihood(labels, rows), abs=2e-3
    )
    assert brier_score(labels, back) == pytest.approx(brier_score(labels, rows), abs=1e-4)


def test_two_bytes_with_ties_and_certainty():
    close = np.array([
        [0.3333, 0.33335, 0.33335],
        [0.5, 0.49999, 0.00001],
        [0.49999, 0.5, 0.00001],
        [1, 0, 0],
        [0, 0, 1.0],
    ])
    back = from_half(to_half(close))
    np.testing.assert_array_equal(back.argmax(axis=1), close.argmax(axis=1))
    np.testing.assert_array_equal(back[3:], close[3:])


# The record of an evaluation


@pytest.fixture(scope="module")
def some():
    labels, rows = drawn(400, 6)
    return score(labels, rows, "some", {"split": "validation", "flip_averaged": True})


def test_top_confusions(some):
    every = some.top_confusions(1_000)
    assert every.images.sum() == some.total - some.right and every.images.is_monotonic_decreasing
    first = every.iloc[0]
    i, j = CLASS_NAMES.index(first.label), CLASS_NAMES.index(first.prediction)
    wrong = some.confusion - np.diag(some.confusion.diagonal())
    assert (
        i != j
        and first.images == wrong.max() == wrong[i, j]
        and first.share == wrong[i, j] / some.confusion[i].sum()
    )
    assert (
        len(some.top_confusions(3)) == 3
        and len(some.top_confusions(0)) == len(some.top_confusions(-5)) == 0
    )
    assert len(some.top_confusions()) == 10
    perfect = score(np.arange(10), np.eye(10))
    assert len(perfect.top_confusions()) == 0 and "most frequent confusions" in perfect.to_text()


def test_json_holds_it_all_and_comes_back(some, tmp_path):
    values = json.loads(some.to_json())
    assert (
        values["negative_log_likelihood"]
        == some.negative_log_likelihood
        == negative_log_likelihood(some.labels, some.probabilities)
    )
    assert values["brier_score"] == some.brier_score and values["details"] == some.details
    assert [(one["bins"], one["adaptive"], one["error"]) for one in values["calibrations"]] == [
        (15, adaptive, calibration(some.labels, some.probabilities, 15, adaptive).error)
        for adaptive in (False, True)
    ]
    assert values["top_confusions"][0]["images"] == some.top_confusions(1).images[0]
    assert list(values["averages"]) == ["macro", "weighted"] and len(values["per_class"]) == 10
    back = Evaluation.from_json(some.to_json())
    assert (
        back.to_json() == some.to_json()
        and back.to_text() == some.to_text()
        and back._repr_html_() == some._repr_html_()
    )
    for adaptive in (False, True):
        pd.testing.assert_frame_equal(
            back.calibration(15, adaptive).table, some.calibration(15, adaptive).table
        )
    with pytest.raises(EvaluateError, match="has no probabilities"):
        back.calibration(10)
    whole = load_evaluation(some.save(tmp_path))
    assert whole.to_json() == some.to_json() and whole.calibration(10).error == pytest.approx(
        some.calibration(10).error, abs=1e-2
    )


def test_json_without_probabilities_comes_back(some):
    bare = replace(
        some, probabilities=None, negative_log_likelihood=None, brier_score=None, calibrations=()
    )
    assert Evaluation.from_json(bare.to_json()).to_json() == bare.to_json()
    assert "calibration" not in bare.to_text() and "negative log" not in bare._repr_html_()


WRONG = [
    ("negative_log_likelihood", "x"),
    ("negative_log_likelihood", [1]),
    ("brier_score", "x"),
    ("brier_score", {}),
    ("calibrations", None),
    ("calibrations", 3),
    ("calibrations", [3]),
    ("calibrations", [{}]),
    ("calibrations", [{"bins": 15, "adaptive": False, "error": 0.5, "table": {}}]),
]


@pytest.mark.parametrize("name, value", WRONG)
def test_json_with_a_wrong_value_is_refused(some, name, value):
    with pytest.raises(EvaluateError, match="these are not saved metrics"):
        Evaluation.from_json(json.dumps(json.loads(some.to_json()) | {name: value}))


@pytest.mark.parametrize("name", ["negative_log_likelihood", "brier_score", "calibrations"])
def test_json_without_a_value_is_refused(some, name):
    values = json.loads(some.to_json())
    del values[name]
    with pytest.raises(EvaluateError, match="these are not saved metrics"):
        Evaluation.from_json(json.dumps(values))


@pytest.mark.parametrize("column", ["images", "confidence", "accuracy"])
def test_a_changed_calibration_is_refused(some, column):
    values = json.loads(some.to_json())
    values["calibrations"][1]["table"][column][0] += 1
    with pytest.raises(EvaluateError, match="does not fit to the counts"):
        Evaluation.from_json(json.dumps(values))


def test_probabilities_with_the_same_answers_but_another_loss_are_refused(some, tmp_path):
    some.save(tmp_path)
    flat = 0.5 * some.probabilities + 0.05
    score(some.labels, flat).save(tmp_path / "flat")
    shutil.copy(tmp_path / "flat" / "probabilities.npz", tmp_path)
    with pytest.raises(EvaluateError, match="do not belong"):
        load_evaluation(tmp_path)


def test_the_text_says_it_all(some):
    text = some.to_text()
    for part in (
        (
            "some on 400 images of the validation split, averaged with their mirror images (two"
            " passes each, twice the cost)"
        ),
        (
            f"negative log-likelihood {some.negative_log_likelihood:.4f} nats, Brier score"
            f" {some.brier_score:.4f}"
        ),
        f"calibration error {some.calibration().error:.4f} (15 equal bins)",
        f"calibration error {some.calibration(adaptive=True).error:.4f} (15 adaptive bins)",
        "macro average",
        "weighted average",
        f"called {some.top_confusions(1).prediction[0]}",
    ):
        assert part in text
    assert "twice the cost" in some._repr_html_() and "opening" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


# Splits


def test_the_splits_of_a_run(run, data):
    training, validation = split_validation(data.train, 40, 3)
    for split, expected in {"test": data.test, "validation": validation, "train": training}.items():
        found = run_split(run, split, data)
        np.testing.assert_array_equal(found.images, expected.images)
        evaluation = evaluate(run, split, data)
        np.testing.assert_array_equal(evaluation.labels, expected.labels)
        assert (
            evaluation.details["split"] == split
            and len(evaluation.details[f"{split}_sha256"]["images"]) == 64
        )
        np.testing.assert_allclose(
            evaluation.probabilities, run.model().predict(expected.images, verbose=0), atol=1e-6
        )


def test_validation_is_what_the_run_logged(run, data):
    evaluation = evaluate(run, "validation", data)
    assert evaluation.accuracy == pytest.approx(run.history.val_accuracy.iloc[-1], abs=1e-6)
    assert evaluation.negative_log_likelihood == pytest.approx(
        run.history.val_loss.iloc[-1], abs=1e-4
    )


@pytest.mark.parametrize("split", ["Test", "val", "", None, 3, ["test"], b"test"])
def test_unknown_splits(run, data, split):
    with pytest.raises(EvaluateError, match="expected one of test, validation, train"):
        evaluate(run, split, data)
    assert not record_of(run).get("test_opened")


def test_data_in_the_place_of_the_split(run, data):
    with pytest.raises(EvaluateError, match="the split FashionMNIST.* is unknown"):
        evaluate(run, data)


@pytest.mark.parametrize("split", ["validation", "train"])
def test_a_bare_model_knows_no_other_images(data, split):
    assert evaluate(network(), data=data, pixels="0..255").details["split"] == "test"
    with pytest.raises(EvaluateError, match=f"a bare model does not know its {split} images"):
        evaluate(network(), split, data)


def test_other_training_images_than_the_run_had(run, data):
    other = replace(data, train=made_split(240, 9), source="elsewhere")
    for split in ("validation", "train"):
        with pytest.raises(EvaluateError, match="other images than those of elsewhere"):
            evaluate(run, split, other)
    assert evaluate(run, data=other).total == 50


def test_a_run_that_held_nothing_out(run, data):
    everything = replace(run, config=replace(run.config, validation_size=0))
    with pytest.raises(EvaluateError, match="held no images out"):
        run_split(everything, "validation", data)
    assert len(run_split(everything, "train", data)) == 240


# Mirror images


def test_flip_averaging_is_the_mean_of_two_answers(data):
    known = {"data": data, "pixels": "0..255"}
    plain, mirrored = evaluate(network(), **known), evaluate(network(flipped=True), **known)
    both = evaluate(network(), flip_averaged=True, **known)
    np.testing.assert_allclose(
        both.probabilities, (plain.probabilities + mirrored.probabilities) / 2, atol=1e-6
    )
    assert abs(plain.probabilities - both.probabilities).max() > 0.05
    assert [one.details["flip_averaged"] for one in (plain, both)] == [False, True]
    assert both.probabilities.dtype == np.float32


def test_flip_averaging_costs_two_passes(data, monkeypatch):
    model, seen = network(), []
    predict = model.predict
    monkeypatch.setattr(
        model,
        "predict",
        lambda images, **words: seen.append(len(images)) or predict(images, **words),
    )
    evaluate(model, data=data, pixels="0..255")
    evaluate(model, data=data, flip_averaged=True, pixels="0..255")
    assert seen == [50, 50, 50]


# The counter


def test_each_opening_of_test_is_counted(run, data):
    before = record_of(run)
    for number in (1, 2, 3):
        evaluation = evaluate(
            run if number == 1 else run.folder, data=data, flip_averaged=number == 2
        )
        assert (
            evaluation.details["test_opened"] == number
            and f"opening number {number} of" in evaluation.to_text()
        )
    after = record_of(run)
    assert [set(opening) for opening in after.pop("test_opened")] == [{"when", "by"}] * 3
    before.pop("test_opened", None)
    assert after == before and len(load_run(run.folder).record["test_opened"]) == 3


def test_a_run_in_memory_learns_of_it(run, data):
    evaluate(run, data=data)
    assert len(run.record["test_opened"]) == 1


def test_validation_and_train_open_nothing(run, data):
    for split in ("validation", "train"):
        assert "test_opened" not in evaluate(run, split, data).details
    assert not record_of(run).get("test_opened")


def test_the_saved_model_of_a_run_counts_for_the_run(run, data):
    run.model().save(run.folder / "mine.keras")
    evaluation = evaluate(run.folder / "model.keras", data=data)
    assert (
        evaluation.model == "stride_2"
        and evaluation.details["run"] == "run"
        and evaluation.details["test_opened"] == 1
    )
    assert evaluate(run.folder / "model.keras", "validation", data).total == 40
    assert "test_opened" not in evaluate(run.folder / "mine.keras", data=data).details
    assert len(record_of(run)["test_opened"]) == 1


def test_what_was_refused_was_not_counted(run, data):
    narrow = replace(data, test=Split(data.test.images[:, :20], data.test.labels))
    with pytest.raises(EvaluateError, match="have the shape .20, 28, 1.: expected .28, 28, 1."):
        evaluate(run, data=narrow)
    assert not record_of(run).get("test_opened")


def test_no_figure_without_the_count(run, data, monkeypatch):
    before = (run.folder / "record.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(
            EvaluateError, match="No space left on device.*no figure is given that is not counted"
        ):
            evaluate(run, data=data)
    assert (run.folder / "record.json").read_bytes() == before
    assert evaluate(run, data=data).details["test_opened"] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"test_opened": 3}'])
def test_a_record_that_cannot_count(run, data, content):
    (run.folder / "record.json").write_bytes(content)
    with pytest.raises(EvaluateError, match="no figure is given"):
        evaluate(run, data=data)
    assert (run.folder / "record.json").read_bytes() == content


def test_none_is_forgotten_when_many_open_at_once(run):
    from fashion_nb.evaluation.evaluation import _count_opening

    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: _count_opening(load_run(run.folder)), range(24)))
    assert sorted(counts) == list(range(1, 25)) and len(record_of(run)["test_opened"]) == 24


def test_a_run_that_is_still_training_is_not_shown_the_test_images(run, data):
    from filelock import FileLock

    (run.folder / "record.json").write_text(json.dumps(record_of(run) | {"status": "running"}))
    with FileLock(run.folder / "lock"):
        with pytest.raises(EvaluateError, match="is still training: test is for the end"):
            evaluate(run.folder, data=data)
        assert evaluate(run.folder, "validation", data).total == 40
    # killed: its process is gone
    assert evaluate(run.folder, data=data).details["test_opened"] == 1


# Tables


def test_accuracy_table_keeps_configurations_apart(some):
    def one(**settings):
        return replace(some, details={"config": {"model": "stride_1", "epochs": 6} | settings})

    runs = [one(seed=0), one(seed=1), one(seed=0, epochs=9), one(seed=0, augmentation="first_set")]
    table = accuracy_table(runs)
    assert table.runs.tolist()[:3] == [2, 1, 1] and table.epochs.tolist()[:3] == [6, 9, 6]
    assert table.published[0] == table.published[1] == PUBLISHED_ACCURACY[
        "stride_1", "none"
    ] and np.isnan(table.published[2])
    assert table["std"][0] == pytest.approx(0) and np.isnan(table["std"][1])
    assert (
        len(table) == 3 + len(PUBLISHED_ACCURACY) - 1
        and len(accuracy_table(runs, published=False)) == 3
    )
    assert (
        accuracy_table([], published=True).runs.sum() == 0
        and len(accuracy_table([], published=False)) == 0
    )


def test_results_table_beside_the_published_rows(some):
    table = results_table([some])
    assert table.shape == (3, 11) and table.loc["some", "Acc"] == f"{some.accuracy:.4f}"


def test_reliability_diagram(some):
    import matplotlib.pyplot as plt

    ax = plot_reliability(some, adaptive=True)
    table = some.calibration(15, True).table
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "confidence",
        "share",
    ) and "calibration error" in ax.get_title()
    np.testing.assert_array_equal(
        ax.containers[1].lines[0].get_xydata(), table[["confidence", "accuracy"]]
    )
    assert len(ax.patches) == len(table) and sum(
        bar.get_height() for bar in ax.patches
    ) == pytest.approx(1)
    own = plt.figure().add_subplot()
    assert plot_reliability(some, own, bins=4) is own and len(own.patches) == len(
        some.calibration(4).table
    )
    perfect = score(np.arange(10), np.eye(10))
    assert len(plot_reliability(Evaluation.from_json(perfect.to_json())).patches) == 1
    open_figures = plt.get_fignums()
    with pytest.raises(EvaluateError, match="has no probabilities"):
        plot_reliability(Evaluation.from_json(perfect.to_json()), bins=3)
    assert plt.get_fignums() == open_figures
    plt.close("all")


# Another back end


def test_on_jax_without_tensorflow(finished, tmp_path):
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
from test_evaluate import *
data = FashionMNIST(made_split(240, 0), made_split(50, 1), "made", Path("."))
both = evaluate(network(), data=data, flip_averaged=True, pixels="0..255")
np.save({str(tmp_path / "both.npy")!r}, both.probabilities)
assert both.calibration().table.images.sum() == 50 and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    data = FashionMNIST(made_split(240, 0), made_split(50, 1), "made", Path("."))
    here = evaluate(network(), data=data, flip_averaged=True, pixels="0..255").probabilities
    np.testing.assert_allclose(np.load(tmp_path / "both.npy"), here, atol=1e-5)
