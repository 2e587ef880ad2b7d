"""Defects planted in a copy of the data: the audit has to find every one, and to refuse what is no
set of images."""

import json

import numpy as np
import pytest

from fashion_nb.core.errors import FashionNbError
from fashion_nb.data.idx import CLASS_NAMES
from fashion_nb.explore.audit import audit
from fashion_nb.explore.duplicates import (
    exact_duplicates,
    near_duplicates,
    nearest_neighbors,
    pixel_rms,
)
from fashion_nb.explore.labels import check_balance, suspect_labels
from fashion_nb.explore.outliers import find_outliers
from fashion_nb.explore.pixels import ExploreError

COPY, TWIN, INVERTED, BLANK = (
    (11, 40),
    (12, 41),
    13,
    14,
)  # (original, where its copy is put), and one image each


@pytest.fixture(scope="module", params=[12_000, pytest.param(60_000, marks=pytest.mark.slow)])
def defective(data, request):
    """Training images, with a copy, a flipped twin, an inverted and an all-zero image, and 50
    swapped labels."""
    images = np.array(data.train.images[: request.param])
    labels = np.array(data.train.labels[: request.param])
    for original, copy in (COPY, TWIN):
        labels[copy] = labels[original]
    images[COPY[1]] = images[COPY[0]]
    images[TWIN[1]] = images[TWIN[0]][:, ::-1]
    images[INVERTED] = 255 - images[INVERTED]
    images[BLANK] = 0
    generator = np.random.default_rng(2026)
    swapped = 100 + generator.choice(len(labels) - 100, 50, replace=False)
    labels[swapped] = (labels[swapped] + generator.integers(1, 10, 50)) % 10
    return images, labels, swapped


@pytest.fixture(scope="module")
def report(defective):
    return audit(*defective[:2])


@pytest.fixture(scope="module")
def few(data):
    "600 images, for what needs no more."
    return np.array(data.test.images[:600]), np.array(data.test.labels[:600])


def test_duplicate_is_found(report):
    assert report.exact == [list(COPY)]


def test_flipped_twin_is_found(report):
    pair = report.near[(report.near["first"] == TWIN[0]) & (report.near["second"] == TWIN[1])].iloc[
        0
    ]
    assert pair["rms"] == 0 and pair["flipped"]


def test_inverted_image_is_found(report):
    found = report.outliers.loc[INVERTED]
    assert (
        "lit border" in found["checks"]
        and found["far vote"]
        and found["isolated vote"]
        and found["votes"] >= 3
    )
    assert list(report.outliers.index).index(INVERTED) < 60


def test_all_zero_image_is_found(report):
    blank = report.outliers[report.outliers["checks"].str.contains("blank")]
    assert list(blank.index) == [BLANK]
    assert "1 images" in report.to_dict()["findings"]["check: blank"]


def test_swapped_labels_are_found(report, defective):
    swapped = defective[2]
    top = report.suspects.index[: len(report.suspects) // 20]
    assert np.isin(swapped, top).mean() >= 0.9


def test_suggested_labels_of_the_swapped_are_mostly_the_true_ones(report, defective, data):
    suggested = report.suspects.loc[defective[2], "suggested"].to_numpy()
    assert (suggested == data.train.labels[defective[2]]).mean() > 0.75


def test_swapped_labels_unbalance_nothing_that_chance_does_not(report):
    assert report.p > 0.001 and report.missing() == []


def test_missing_class_is_found(data):
    kept = data.test.labels != 3
    report = audit(data.test.images[kept], data.test.labels[kept])
    assert report.missing() == ["Dress"]
    assert (
        "Dress" in report.to_text()
        and "UNBALANCED" in report.to_text()
        and "Dress" in report.to_html()
    )
    assert report.to_dict()["missing"] == ["Dress"] and report.notes == []
    assert not (report.suspects["suggested"] == 3).any()
    with pytest.raises(ExploreError, match="no image of Dress"):
        check_balance(data.test.labels[kept])


def test_the_data_as_published_have_none_of_these(data):
    report = audit(data.test.images, data.test.labels)
    assert (report.exact, report.missing(), report.notes) == ([], [], [])
    assert not report.outliers["checks"].str.contains("blank").any()


def test_the_data_are_not_changed(defective):
    images, labels, _ = defective
    before = images[:500].copy(), labels[:500].copy()
    audit(images[:500], labels[:500])
    np.testing.assert_array_equal(images[:500], before[0])
    np.testing.assert_array_equal(labels[:500], before[1])


def changed(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


@pytest.mark.parametrize(
    "argument, bad, message",
    [
        ("images", lambda i, y: (i / 255, y), "images have the dtype float64, expected uint8"),
        (
            "images",
            lambda i, y: (changed(i.astype(float), (3, 0, 1, 0), np.nan), y),
            r"images hold NaN at \(3, 0, 1, 0\)",
        ),
        ("images", lambda i, y: (i.astype(np.int32), y), "images have the dtype int32"),
        ("images", lambda i, y: (i.reshape(600, 784), y), r"images have the shape \(600, 784\)"),
        (
            "images",
            lambda i, y: (np.repeat(i, 3, axis=3), y),
            r"images have the shape \(600, 28, 28, 3\)",
        ),
        ("images", lambda i, y: (i[:0], y[:0]), "images are empty"),
        ("images", lambda i, y: ("images", y), "images have the dtype"),
        ("images", lambda i, y: (None, y), "images have the dtype object"),
        ("labels", lambda i, y: (i, y[:-1]), "labels are 599 and images are 600"),
        (
            "labels",
            lambda i, y: (i, changed(y, 5, 10)),
            "labels hold 10 at index 5, expected 0 to 9",
        ),
        ("labels", lambda i, y: (i, changed(y.astype(int), 5, -1)), "labels hold -1 at index 5"),
        (
            "labels",
            lambda i, y: (i, changed(y.astype(float), 7, np.nan)),
            "labels hold NaN at index 7",
        ),
        ("labels", lambda i, y: (i, y.astype(float)), "labels have the dtype float64"),
        ("labels", lambda i, y: (i, y[:, None]), r"labels have the shape \(600, 1\)"),
        ("labels", lambda i, y: (i, list(map(str, y))), "labels have the dtype <U1"),
        ("labels", lambda i, y: (i, None), "labels have the dtype object"),
    ],
)
@pytest.mark.parametrize("function", [audit, find_outliers, suspect_labels])
def test_bad_input_is_refused_by_name_and_value(few, function, argument, bad, message):
    with pytest.raises(ExploreError, match=message) as caught:
        function(*bad(*few))
    assert isinstance(caught.value, (FashionNbError, ValueError)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_bad_threshold_is_refused(few, threshold):
    for call in (
        lambda: near_duplicates(few[0], threshold),
        lambda: audit(*few, threshold=threshold),
    ):
        with pytest.raises(ExploreError, match="threshold is"):
            call()


@pytest.mark.parametrize(
    "images, labels",
    [
        (np.zeros((1, 28, 28), np.uint8), [0]),
        (np.zeros((40, 28, 28), np.uint8), [0, 1] * 20),
        (np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3), [0, 1, 2, 3, 9]),
        (np.random.default_rng(0).integers(0, 256, (70, 9, 5), np.uint8), np.arange(70) % 3),
    ],
)
def test_small_and_strange_sets_are_audited(images, labels, recwarn):
    report = audit(images, labels)
    json.dumps(report.to_dict(), allow_nan=False)
    assert (
        f"{len(images)} of" in report.to_text()
        and report.to_html().startswith("<!DOCTYPE html>")
        and report._repr_html_()
    )
    assert [str(w.message) for w in recwarn] == []


def test_more_than_ten_classes_and_their_names_are_escaped(few):
    names = tuple(f"<b>{k}</b> & $" for k in range(12))
    page = audit(few[0], few[1], class_names=names).to_html()
    assert "<b>0</b>" not in page and "&lt;b&gt;0&lt;/b&gt; &amp; $" in page


def test_page_needs_no_other_file_and_is_written_whole(few, tmp_path):
    report = audit(*few)
    page = report.to_html(tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == page
    assert (
        "http:" not in page
        and "https:" not in page
        and "<script" not in page
        and "<link" not in page
    )
    assert all(source.startswith("data:image/png;base64,") for source in page.split('src="')[1:])


def test_audit_is_the_same_every_time_and_seed_and_threshold_matter(few):
    first, again = audit(*few), audit(*few)
    assert first.to_dict() == again.to_dict()
    assert audit(*few, seed=1).to_dict()["tables"] != first.to_dict()["tables"]
    assert len(audit(*few, threshold=0.12).near) > len(first.near)
    assert set(near_duplicates(few[0], 0.12, flips=False)["flipped"]) == {False}


def test_near_duplicates_miss_no_pair(few):
    images = few[0][..., 0]
    found = near_duplicates(images, 0.11)
    expected = {}
    for i in range(len(images)):
        rest = images[i + 1 :]
        if len(rest):
            own = np.repeat(images[i : i + 1], len(rest), axis=0)
            rms = np.minimum(pixel_rms(own, rest), pixel_rms(own, rest[:, :, ::-1]))
            expected.update({(i, i + 1 + j): rms[j] for j in np.flatnonzero(rms < 0.11)})
    assert {
        (a, b): r for a, b, r in zip(found["first"], found["second"], found["rms"])
    } == expected and len(expected) > 20


def test_nearest_neighbors_do_not_depend_on_the_block(few):
    whole = nearest_neighbors(few[0][:100], few[0][100:])
    for block in (1, 7, 1_000):
        np.testing.assert_array_equal(nearest_neighbors(few[0][:100], few[0][100:], block), whole)


def test_many_equal_images_are_one_group(few):
    images = np.concatenate([few[0]] * 3)
    groups = exact_duplicates(images)
    assert len(groups) == 600 and groups[0] == [0, 600, 1200]
    assert (nearest_neighbors(few[0][:9], images)[0] == np.arange(9)).all()
    assert (near_duplicates(images, 0.08)["second"] < 600).all()


def test_class_names_are_those_that_were_published_and_each_is_missed_by_its_name(data):
    assert CLASS_NAMES == (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    for label, name in enumerate(CLASS_NAMES):
        with pytest.raises(ExploreError, match=f"no image of {name}"):
            check_balance(data.test.labels[data.test.labels != label])
