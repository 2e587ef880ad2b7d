"""Comparisons and slices on made-up networks: what must be found, what must not, and what must be
refused."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fashion_nb.core.errors import FashionNbError
from fashion_nb.data.fashion_mnist import FashionMNIST, Split
from fashion_nb.data.idx import CLASS_NAMES
from fashion_nb.evaluation.comparison import (
    CompareError,
    Comparison,
    bootstrap_interval,
    compare,
    mcnemar,
    plot_differing,
    smallest_difference,
)
from fashion_nb.evaluation.metrics import wilson_interval
from fashion_nb.evaluation.scores import Evaluation, score
from fashion_nb.evaluation.seeds import (
    compare_many,
    compare_seeds,
    holm,
    plot_comparisons,
    welch,
)
from fashion_nb.evaluation.slices import (
    class_pairs,
    find_twins,
    images_hash,
    outlier_parts,
    plot_slices,
    slice_masks,
    slice_scores,
    slices,
    train_twins,
    twins_to_json,
)

LABELS = np.repeat(np.arange(10, dtype=np.uint8), 100)


def network(accuracy, seed, labels=LABELS, name="made", details=None):
    "An evaluation with about this accuracy; wrong answers and probabilities are drawn."
    random = np.random.default_rng(seed)
    answers = np.where(
        random.random(len(labels)) < accuracy,
        labels,
        (labels + random.integers(1, 10, len(labels))) % 10,
    )
    sure = random.uniform(0.5, 0.95, len(labels))
    probabilities = np.repeat((1 - sure)[:, None] / 9, 10, axis=1)
    probabilities[np.arange(len(labels)), answers] = sure
    return score(labels, probabilities, name, details)


a_network = network(0.9, 0)


def answering(accuracy, seed):
    """The same with other answers and nothing else, which is enough for the tests of two networks
    and quick to make."""
    random = np.random.default_rng(seed)
    wrong = (LABELS + random.integers(1, 10, len(LABELS))) % 10
    return replace(
        a_network,
        predictions=np.where(random.random(len(LABELS)) < accuracy, LABELS, wrong).astype(np.uint8),
    )


@pytest.fixture(scope="module")
def small(data):
    "The data set cut to 80 test and 400 train images, with a plain and a mirrored twin planted."
    test, train = data.test.images[:80].copy(), data.train.images[:400].copy()
    train[5], train[6] = test[40], test[41][:, ::-1]
    return FashionMNIST(
        Split(train, data.train.labels[:400]), Split(test, data.test.labels[:80]), "made", Path(".")
    )


# ---------------------------------------------------------------- two networks


@pytest.mark.parametrize(
    "b, c", [(0, 0), (1, 0), (6, 0), (7, 1), (30, 30), (314, 258), (2_000, 1_800)]
)
def test_mcnemar_is_the_binomial_test(b, c):
    expected = min(1, 2 * stats.binom.cdf(min(b, c), b + c, 0.5)) if b + c else 1
    assert mcnemar(b, c) == pytest.approx(expected) and mcnemar(c, b) == mcnemar(b, c)
    assert isinstance(mcnemar(np.int64(b), np.uint16(c)), float)


@pytest.mark.parametrize("differing", [0, 1, 5, 6, 7, 20, 301, 600])
def test_smallest_difference_is_the_smallest(differing):
    found = smallest_difference(differing, 10_000)
    if found == float("inf"):
        assert mcnemar(differing, 0) >= 0.05
        return
    c = round((differing - found * 10_000) / 2)
    assert mcnemar(differing - c, c) < 0.05
    assert c == differing // 2 or mcnemar(differing - c - 1, c + 1) >= 0.05
    assert smallest_difference(differing, 10_000, level=0.001) >= found


def test_a_p_value_at_the_level_is_not_below_it():
    assert (
        smallest_difference(6, 100, level=1 / 32) == float("inf")
        and smallest_difference(7, 100, level=1 / 32) == 0.07
    )
    assert compare_many({"x": answering(1, 0), "y": answering(1, 1)}, level=0.5)[
        "differs"
    ].tolist() == [False]


def test_mcnemar_gives_few_false_alarms_and_finds_what_is_there():
    equal = [
        compare(answering(0.9, 2 * k), answering(0.9, 2 * k + 1), resamples=10).p < 0.05
        for k in range(400)
    ]
    better = [
        compare(answering(0.95, 2 * k), answering(0.85, 2 * k + 1), resamples=10).p < 0.05
        for k in range(20)
    ]
    assert 5 <= sum(equal) <= 32 and all(better)


def test_comparison_counts_what_a_loop_counts():
    a, b = network(0.9, 0, name="a"), network(0.85, 1, name="b")
    table = np.zeros((2, 2), int)
    for label, first, second in zip(a.labels, a.predictions, b.predictions):
        table[int(first != label), int(second != label)] += 1
    found = compare(a, b)
    np.testing.assert_array_equal(found.table, table)
    assert found.difference == pytest.approx(a.accuracy - b.accuracy)
    assert set(found.differ["image"]) == set(np.flatnonzero(a.predictions != b.predictions))
    assert (found.differ["right"] == "first").sum() == table[0, 1] and (
        found.differ["right"] == "second"
    ).sum() == table[1, 0]
    assert (
        found.differ[["first probability", "second probability"]]
        .min(axis=1)
        .is_monotonic_decreasing
    )
    assert found.differ["label"].isin(CLASS_NAMES).all()


def test_bootstrap_agrees_with_scipy():
    outcome = np.repeat([1, -1, 0], [60, 35, 905])
    expected = stats.bootstrap(
        (outcome,),
        np.mean,
        n_resamples=5_000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(60, 35, 1_000), expected, atol=0.0015)


@pytest.mark.parametrize(
    "option, value",
    [
        ("confidence", 0.5),
        ("resamples", 50),
        ("seed", 3),
        ("images", LABELS < 5),
        ("names", ("x", "y")),
    ],
)
def test_every_option_of_compare_changes_the_result(option, value):
    a, b = network(0.9, 0), network(0.88, 1)
    few = {"resamples": 200} if option == "seed" else {}
    plain, other = compare(a, b, **few), compare(a, b, **{**few, option: value})
    assert (plain.interval, plain.names) != (other.interval, other.names)


def test_it_shows_itself_in_three_ways_and_escapes_names():
    found = compare(network(0.9, 0, name="<i>one</i>"), network(0.8, 1, name="two"))
    assert "<i>" not in found._repr_html_() and "&lt;i&gt;one" in found._repr_html_()
    assert (
        repr(found).startswith("Comparison('<i>one</i> against two: +")
        and "McNemar" in found.to_text()
    )
    assert all(len(line) < 130 for line in found.to_text().splitlines())


def test_identical_networks_do_not_differ(recwarn):
    a = network(0.9, 0)
    found = compare(a, a)
    assert (found.p, found.interval, found.difference, len(found.differ), found.names) == (
        1,
        (0, 0),
        0,
        0,
        ("made (1)", "made (2)"),
    )
    assert len(plot_differing(found, np.zeros((1_000, 28, 28, 1), np.uint8))) == 0
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: compare(a_network, None), "type NoneType cannot be compared"),
        (lambda: compare("run", a_network), "type str cannot be compared"),
        (
            lambda: compare(a_network, Evaluation.from_json(a_network.to_json())),
            "no answers image by image",
        ),
        (lambda: compare(a_network, network(0.9, 1, LABELS[:500])), "1,000 and 500 images"),
        (lambda: compare(a_network, network(0.9, 1, LABELS[::-1].copy())), "different images"),
        (
            lambda: compare(
                network(0.9, 0, details={"test_sha256": "a"}),
                network(0.9, 1, details={"test_sha256": "b"}),
            ),
            "different images",
        ),
        (
            lambda: compare(a_network, a_network, images=[1_000]),
            "expected a mask of 1,000, or numbers below it",
        ),
        (lambda: compare(a_network, a_network, images=[]), "expected a mask"),
        (lambda: compare(a_network, a_network, images=LABELS > 10), "expected a mask"),
        (lambda: compare(a_network, a_network, confidence=95), "a confidence between 0 and 1"),
        (lambda: compare(a_network, a_network, resamples=0), "at least one resample"),
        (lambda: mcnemar(3, -1), "expected two counts"),
        (lambda: smallest_difference(3, 2), "expected 0 <= differing <= total"),
        (lambda: smallest_difference(3, 9, level=0), "a level between 0 and 1"),
        (lambda: welch([1, 2], [3]), "two or more figures"),
        (lambda: welch([1, 1], [1, 1]), "not all alike"),
        (
            lambda: compare_seeds([0.9], [0.8, 0.9]),
            "the first has 1 run: expected two or more seeds",
        ),
        (lambda: compare_seeds([0.9, 0.8], [], names=("x", "y")), "y has 0 runs"),
        (lambda: compare_seeds([a_network] * 2, [0.9, 0.8]), "gave the same probabilities"),
        (lambda: compare_seeds([90, 91], [80, 81]), "accuracies from 0 to 1"),
        (
            lambda: compare_seeds(
                [a_network, network(0.9, 5)], [network(0.9, k, LABELS[:500]) for k in (1, 2)]
            ),
            "1,000 and 500 images",
        ),
        (lambda: compare_many({"x": a_network}), "two or more names"),
        (lambda: compare_many([a_network, a_network]), "expected a mapping"),
        (lambda: compare_many({"x": a_network, "y": [0.9, 0.8]}), "one kind for all"),
        (
            lambda: compare_many({"x": a_network, "y": a_network}, against="z"),
            "'z' is none of 'x', 'y'",
        ),
        (lambda: compare_many({"x": a_network, "y": a_network}, level=1), "the level is 1"),
        (lambda: holm([0.5, 1.5]), "numbers from 0 to 1"),
        (lambda: slice_scores(a_network, {"odd": [0.5]}), "slice 'odd'"),
        (
            lambda: class_pairs(Evaluation.from_json(a_network.to_json())),
            "no answers image by image",
        ),
        (
            lambda: find_twins(
                np.zeros((2, 28, 28, 1), np.uint8), np.zeros((2, 28, 28, 1), np.uint8), 2
            ),
            "the limit is 2",
        ),
        (
            lambda: outlier_parts(np.zeros((2, 28, 28, 1), np.uint8), [0, 1], 3),
            "3 parts of 2 images",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(CompareError) as caught:
        call()
    assert (
        message in str(caught.value)
        and "\n" not in str(caught.value)
        and isinstance(caught.value, FashionNbError)
    )


# ---------------------------------------------------------------- several runs, many networks


def test_welch_is_scipys():
    random = np.random.default_rng(0)
    for sizes in [(2, 2), (3, 3), (3, 8), (20, 5)]:
        sides = [random.normal(0.9, 0.01 * (k + 1), size) for k, size in enumerate(sizes)]
        expected = stats.ttest_ind(*sides, equal_var=False)
        p, half, degrees = welch(*sides)
        low, high = expected.confidence_interval()
        assert (p, half, degrees) == pytest.approx((expected.pvalue, (high - low) / 2, expected.df))


def test_one_side_without_spread_is_a_one_sample_question(recwarn):
    p, half, degrees = welch([3, 3, 3], [1, 2, 4])
    assert degrees == 2 and p == pytest.approx(stats.ttest_1samp([1, 2, 4], 3).pvalue)
    assert [str(w.message) for w in recwarn] == []


def test_over_seeds_false_alarms_are_as_rare_as_promised():
    random = np.random.default_rng(1)
    alarms = [compare_seeds(*random.normal(0.9, 0.005, (2, 4))).p < 0.05 for _ in range(1_000)]
    assert 0.025 < np.mean(alarms) < 0.065


def test_wide_interval_is_wider_and_contains_the_other():
    found = compare_seeds(
        [network(0.9, k) for k in range(3)], [network(0.85, k) for k in range(3, 6)]
    )
    assert (
        found.wide_interval[0]
        < found.interval[0]
        < found.difference
        < found.interval[1]
        < found.wide_interval[1]
    )
    assert found.names == ("made", "made") and "with other images too" in found._repr_html_()
    assert compare_seeds([0.9, 0.91], [0.8, 0.81]).wide_interval is None
    assert found.to_frame()["mean"].tolist() == [side.mean() for side in found.rates]


def test_holm_rejects_what_the_textbook_procedure_rejects():
    random = np.random.default_rng(2)
    for _ in range(200):
        p = random.uniform(0, 0.1, random.integers(1, 12))
        rejected, order = np.zeros(len(p), bool), np.argsort(p)
        for k, i in enumerate(order):
            if p[i] > 0.05 / (len(p) - k):
                break
            rejected[i] = True
        np.testing.assert_array_equal(holm(p) <= 0.05, rejected)
        assert (holm(p) >= p).all()


def test_many_equal_networks_give_an_alarm_no_more_often_than_the_level():
    plain, corrected = [], []
    for k in range(60):
        frame = compare_many({str(j): answering(0.8, 10 * k + j) for j in range(5)}, resamples=10)
        plain.append((frame["p"] < 0.05).any())
        corrected.append(frame["differs"].any())
    assert np.mean(corrected) <= 0.1 < np.mean(plain)


def test_compare_many_names_every_pair_once_and_takes_options():
    named = {
        name: network(rate, k)
        for k, (name, rate) in enumerate([("x", 0.9), ("y", 0.8), ("z", 0.7)])
    }
    frame = compare_many(named)
    assert (
        list(zip(frame["first"], frame["second"])) == [("x", "y"), ("x", "z"), ("y", "z")]
        and frame["differs"].all()
    )
    assert (frame["low"] < frame["difference"]).all() and (
        frame["difference"] < frame["high"]
    ).all()
    one = compare_many(named, against="y")
    assert (
        list(zip(one["first"], one["second"])) == [("x", "y"), ("z", "y")]
        and one["difference"].tolist()[1] < 0
    )
    assert np.allclose(one["corrected"], holm(one["p"]))
    assert not compare_many(named, level=1e-12)["differs"].all()
    assert (
        compare_many(named, images=LABELS < 5)["difference"].tolist()
        != frame["difference"].tolist()
    )
    seeds = compare_many({"x": [0.9, 0.91], "y": [0.8, 0.82], "z": [0.7, 0.75]}, confidence=0.5)
    assert len(seeds) == 3 and np.allclose(seeds["corrected"], holm(seeds["p"]))


# ---------------------------------------------------------------- slices


def test_slices_add_up_and_have_wilsons_interval():
    a = network(0.9, 0)
    frame = slice_scores(
        a, {"low": LABELS < 5, "high": np.flatnonzero(LABELS >= 5)}, confidence=0.9
    )
    assert frame["images"].tolist() == [500, 500] and frame["right"].sum() == a.right
    assert tuple(frame.loc["low", ["low", "high"]]) == wilson_interval(
        int(frame.loc["low", "right"]), 500, 0.9
    )


def test_stored_list_of_twins_is_about_this_data_set(data):
    stored = json.loads(
        resources.files("fashion_nb")
        .joinpath("results/near_duplicates.json")
        .read_text(encoding="utf-8")
    )
    assert stored["test_sha256"] == images_hash(data.test.images) and stored[
        "train_sha256"
    ] == images_hash(data.train.images)
    frame = train_twins(data, stored["limit"])
    assert twins_to_json(frame, data, stored["limit"]) == resources.files("fashion_nb").joinpath(
        "results/near_duplicates.json"
    ).read_text(encoding="utf-8")
    assert (
        frame["image"].is_unique
        and (frame["rms"] < stored["limit"]).all()
        and frame["rms"].is_monotonic_increasing
    )
    assert (data.train.labels[frame["train"]] == data.test.labels[frame["image"]])[
        frame["rms"] < 0.06
    ].all()
    plain = frame[~frame["mirrored"]]
    difference = data.test.images[plain["image"]].astype(float) - data.train.images[plain["train"]]
    np.testing.assert_allclose(np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255, plain["rms"])


@pytest.mark.slow
def test_stored_list_of_twins_is_what_all_distances_give(data):
    pd.testing.assert_frame_equal(
        train_twins(data, 0.07),
        find_twins(data.test.images, data.train.images, 0.07),
        check_exact=True,
    )


def test_planted_twins_are_found_in_other_data(small):
    frame = train_twins(small)
    assert (
        frame[["image", "train", "mirrored"]].to_numpy().tolist() == [[40, 5, False], [41, 6, True]]
        and (frame["rms"] == 0).all()
    )
    assert len(train_twins(small, 0.15)) > 2
    masks = slice_masks(small, parts=8)
    assert list(map(int, (mask.sum() for mask in masks.values()))) == [80, 78, 2, 10, 70]


def test_a_twin_that_is_its_own_mirror_image_is_not_called_mirrored():
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[0, :, 10:18] = 200
    assert find_twins(image, image)[["image", "train", "mirrored"]].to_numpy().tolist() == [
        [0, 0, False]
    ]


def test_a_slice_without_an_image_is_left_out(small, monkeypatch):
    monkeypatch.setattr(
        "fashion_nb.evaluation.slices.train_twins",
        lambda data, limit: pd.DataFrame({"image": np.array([], int)}),
    )
    assert list(slice_masks(small)) == [
        "all",
        "no twin in train below 0.05",
        "strangest 10%",
        "the other 90%",
    ]


def test_slices_of_the_test_images(small):
    a = network(0.9, 0, small.test.labels)
    frame = slices(a, small)
    assert frame.loc["all", "right"] == a.right and frame["right"].iloc[3:].sum() == a.right
    assert slices(a, small, limit=0.2).loc["a twin in train below 0.2", "images"] > 2
    with pytest.raises(CompareError, match="80 images with other labels"):
        slices(network(0.9, 0, small.test.labels[::-1].copy()), small)


def test_pairs_of_classes_are_a_choice_of_two():
    a = network(0.7, 0)
    frame = class_pairs(a).set_index(["first", "second"])
    assert len(frame) == 45 and (frame["images"] == 200).all()
    images = np.isin(a.labels, (2, 6))
    expected = sum(
        (2 if p[2] >= p[6] else 6) == label
        for p, label in zip(a.probabilities[images], a.labels[images])
    )
    assert frame.loc[("Pullover", "Shirt"), "right"] == expected
    # only pairs with images
    assert class_pairs(network(0.7, 0, LABELS[:250])).shape[0] == 9 + 8 + 7


def test_plots_say_what_the_frames_say():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    named = {
        name: network(rate, k)
        for k, (name, rate) in enumerate([("x", 0.9), ("y", 0.8), ("z", 0.7)])
    }
    frame = compare_many(named)
    ax = plot_comparisons(frame)
    expected = frame.sort_values("difference")
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        f"{a} – {b}" for a, b in zip(expected["first"], expected["second"])
    ]
    given = plt.subplots()[1]
    assert plot_slices({"x": slice_scores(named["x"], {"all": LABELS < 10})}, given) is given
    found = compare(named["x"], named["y"])
    assert (
        isinstance(found, Comparison)
        and len(plot_differing(found, np.zeros((1_000, 28, 28, 1), np.uint8), 5, 3)) == 5
    )
    with pytest.raises(CompareError, match="10 images, expected all that were evaluated"):
        plot_differing(found, np.zeros((10, 28, 28, 1), np.uint8))
    plt.close("all")


def test_importing_it_loads_no_framework():
    code = (
        "import sys; from fashion_nb.evaluation import comparison, seeds, slices; print([m for m in"
        " ('tensorflow', 'keras', 'torch', 'jax', 'sklearn', 'matplotlib', 'pandas')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert found.stdout.strip() == "[]"
