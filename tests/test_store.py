"""The store: whole records or none, one clear sentence for each damage, and figures that follow
from the answers."""
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import made_data, made_split

import fashion_nb.experiments.leaderboard
import fashion_nb.experiments.store
from fashion_nb.analysis.cost import model_cost
from fashion_nb.data.fashion_mnist import Split
from fashion_nb.evaluation.comparison import compare
from fashion_nb.evaluation.evaluation import evaluate
from fashion_nb.evaluation.scores import from_half, score, to_half
from fashion_nb.experiments import store as store_room
from fashion_nb.experiments.grid import GRIDS
from fashion_nb.experiments.leaderboard import leaderboard, reproduce, run_experiment
from fashion_nb.experiments.published import PUBLISHED_POINTS, published_points
from fashion_nb.experiments.store import (
    StoreError,
    find_records_of,
    load_records,
    pack_answers,
    store_folder,
    store_run,
    unpack_answers,
)
from fashion_nb.models.zoo import build_model
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.machine import data_hashes
from fashion_nb.training.runs import load_run
from fashion_nb.training.soft_labels import soft_labels_hash

SMALL = TrainConfig(model="conv8/4 conv8/2 flat", epochs=2, batch_size=50, validation_size=40)
NAME = "made/small-seed0"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "A store with one record, and the folder of its run."
    folder = tmp_path_factory.mktemp("kept")
    run_experiment(SMALL, NAME, folder / "store", folder / "runs", made_data(), progress=False)
    return folder


@pytest.fixture
def store(kept, tmp_path):
    "A copy of that store."
    return shutil.copytree(kept / "store", tmp_path / "store")


@pytest.fixture
def run(kept, tmp_path):
    "A copy of that run."
    return load_run(shutil.copytree(next((kept / "runs").iterdir()), tmp_path / "run"))


def names(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()
    )


def write_answers(path, array):
    "A file as stores had it before: two bytes a probability."
    packed = io.BytesIO()
    np.savez_compressed(packed, probabilities=array)
    path.write_bytes(packed.getvalue())


def fake(store, name, answers, config=SMALL, **changes):
    "A record with given answers, beside the real one."
    details = json.loads((store / f"{NAME}.json").read_text())
    right = int((answers.argmax(axis=1) == made_data().test.labels[: len(answers)]).sum())
    seed = int(name.rpartition("-seed")[2])
    details |= {
        "config": asdict(replace(config, seed=seed)),
        "metrics": {"images": len(answers), "right": right, "hit_rate": right / len(answers)},
    } | changes
    (store / name).parent.mkdir(exist_ok=True, parents=True)
    (store / f"{name}.npz").write_bytes(pack_answers(answers.astype(np.float32)))
    details["answers_sha256"] = hashlib.sha256((store / f"{name}.npz").read_bytes()).hexdigest()
    (store / f"{name}.json").write_text(json.dumps(details))


def answers_with(right):
    "Answers to the 50 made test images of which some are right, each with 0.91 for its class."
    labels = made_data().test.labels.astype(int)
    chosen = np.where(np.arange(50) < right, labels, (labels + 1) % 10)
    return np.full((50, 10), 0.01) + 0.9 * np.eye(10)[chosen]


# A record


def test_a_record_tells_what_was_done(store, run):
    (record,) = load_records(folder=store)
    assert (record.name, record.row, record.group, record.config) == (
        NAME,
        "made/small",
        "made",
        SMALL,
    )
    assert (
        record.history.epoch.tolist() == [1, 2] and record.history.val_accuracy.between(0, 1).all()
    )
    assert record.details["data"] == {
        "train_sha256": data_hashes(made_data().train),
        "test_sha256": data_hashes(made_data().test),
    }
    assert record.details["sessions"] == 1 and set(record.details["versions"]) >= {
        "python",
        "keras",
        "numpy",
    }
    found, again = record.evaluation(made_data()), evaluate(run, "test", made_data())
    np.testing.assert_array_equal(found.predictions, again.predictions)
    np.testing.assert_allclose(record.probabilities, again.probabilities, atol=1e-3)
    assert (
        record.details["metrics"]["right"] == found.right
        and record.details["metrics"]["hit_rate"] == found.right / 50
    )


def test_the_files_are_two_and_small(store):
    assert names(store) == [f"{NAME}.json", f"{NAME}.npz"]
    with np.load(store / f"{NAME}.npz") as arrays:
        assert {key: (arrays[key].dtype, arrays[key].shape) for key in arrays} == {
            "winners": (np.uint8, (50,)),
            "roots": (np.uint8, (2, 10, 50)),
        }
    assert json.loads((store / f"{NAME}.json").read_text())["config"] == asdict(SMALL)


def test_nothing_held_out_leaves_a_gap_and_no_nan(tmp_path):
    config = replace(SMALL, validation_size=0, epochs=1)
    record = run_experiment(
        config, "made/all-seed0", tmp_path / "store", tmp_path / "runs", made_data(), progress=False
    )
    assert (
        "NaN" not in (tmp_path / "store/made/all-seed0.json").read_text()
        and record.details["history"][0]["val_accuracy"] is None
    )
    assert math.isnan(leaderboard(folder=tmp_path / "store", data=made_data()).validation[0])


# Look up, or train


def no_training(*_, **__):
    raise AssertionError("it was trained")


def test_what_is_stored_is_not_trained(store, monkeypatch):
    monkeypatch.setattr(fashion_nb.experiments.leaderboard, "train", no_training)
    assert run_experiment(SMALL, "other/name-seed0", store, data=made_data()).name == NAME
    assert set(find_records_of([SMALL, replace(SMALL, seed=1)], store)) == {SMALL.identity}
    with pytest.raises(AssertionError, match="it was trained"):
        run_experiment(replace(SMALL, seed=1), None, store, data=made_data())


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "made/x",
        "made/x-seed",
        "made/X-seed0",
        "made/a/b-seed0",
        "../x-seed0",
        "/x-seed0",
        "made/x y-seed0",
        "made/-seed0",
        "made/x-seed0.json",
        "made/x-seed0\n",
    ],
)
def test_names_that_cannot_be_found_again(name, run, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_nb.experiments.leaderboard, "train", no_training)
    for call in (
        lambda: store_run(run, name, tmp_path / "store", made_data()),
        lambda: run_experiment(SMALL, name or " ", tmp_path / "store", data=made_data()),
    ):
        with pytest.raises(
            StoreError, match="cannot name a stored result: expected GROUP/ROW-seedN"
        ):
            call()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["made/small-seed1", "made/small-seed10", "made/small-seed00"])
def test_a_name_with_another_seed_is_refused_before_anything_is_written(
    name, run, store, monkeypatch
):
    monkeypatch.setattr(fashion_nb.experiments.leaderboard, "train", no_training)
    with pytest.raises(StoreError, match="seed 0"):
        store_run(run, name, store, made_data())
    with pytest.raises(StoreError, match="seed 0"):
        run_experiment(replace(SMALL, epochs=1), name, store, data=made_data())
    assert names(store) == [f"{NAME}.json", f"{NAME}.npz"] and len(load_records(folder=store)) == 1


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_only_finished_runs_are_stored(status, run, tmp_path):
    record = json.loads((run.folder / "record.json").read_text())
    (run.folder / "record.json").write_text(json.dumps(record | {"status": status}))
    with pytest.raises(StoreError, match="expected a finished one"):
        store_run(load_run(run.folder), NAME, tmp_path / "store", made_data())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_leaves_no_half_record(at, code, run, tmp_path, monkeypatch):
    write, written = fashion_nb.experiments.store.write_atomically, []

    def full(path, content):
        written.append(path)
        if len(written) == at:
            raise OSError(code, os.strerror(code))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(fashion_nb.experiments.store, "write_atomically", full)
        with pytest.raises(
            StoreError,
            match=(
                f"cannot be stored in .*{os.strerror(code)}.*: name a folder that you may write to"
            ),
        ) as error:
            store_run(run, NAME, tmp_path / "store", made_data())
    assert "\n" not in str(error.value)
    assert (
        not list((tmp_path / "store").rglob("*.json"))
        and load_records(folder=tmp_path / "store") == []
    )
    assert store_run(run, NAME, tmp_path / "store", made_data()).name == NAME
    assert names(tmp_path / "store") == [f"{NAME}.json", f"{NAME}.npz"]


def test_a_disk_that_fills_up_inside_a_file(run, tmp_path, monkeypatch):
    counted, replace_file = [], os.replace

    def full(source, target, **options):
        counted.append(target)
        if Path(target).suffix == ".npz" and "store" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace_file(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        store_run(run, NAME, tmp_path / "store", made_data())
    assert names(tmp_path / "store") == []


def test_a_file_in_the_place_of_the_store(run, tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="cannot be stored in"):
        store_run(run, NAME, tmp_path / "store", made_data())


def test_storing_counts_as_opening_the_test_images(run, tmp_path):
    before = len(run.record.get("test_opened", ()))
    store_run(run, NAME, tmp_path / "store", made_data())
    assert len(load_run(run.folder).record["test_opened"]) == before + 1


def test_a_name_is_not_taken_by_other_settings(store, run, tmp_path):
    fake(store, NAME, answers_with(7), replace(SMALL, epochs=9))
    before = {name: (store / name).read_bytes() for name in names(store)}
    with pytest.raises(
        StoreError,
        match=(
            f"{NAME} is stored already, with other settings: choose another name, or delete its two"
            " files"
        ),
    ):
        store_run(run, NAME, store, made_data())
    assert {name: (store / name).read_bytes() for name in names(store)} == before
    # refused before they were opened
    assert len(run.record.get("test_opened", ())) == len(
        load_run(run.folder).record.get("test_opened", ())
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_name_is_not_taken_by_other_images(part, store, run, monkeypatch):
    other = replace(made_data(), **{part: made_split(240 if part == "train" else 50, 7)})
    before = {name: (store / name).read_bytes() for name in names(store)}
    monkeypatch.setattr(fashion_nb.experiments.leaderboard, "train", no_training)
    with pytest.raises(
        StoreError,
        match=(
            f"{NAME} is stored already, with other images: choose another name, or delete its two"
            " files"
        ),
    ):
        run_experiment(SMALL, NAME, store, data=other)
    assert {name: (store / name).read_bytes() for name in names(store)} == before
    assert not find_records_of([SMALL], store, other) and set(
        find_records_of([SMALL], store, made_data())
    ) == {SMALL.identity}


def test_the_evaluation_on_other_images_does_not_replace_a_record(store, run):
    other, before = (
        replace(made_data(), test=made_split(50, 7)),
        (store / f"{NAME}.npz").read_bytes(),
    )
    with pytest.raises(StoreError, match="with other images"):
        store_run(run, NAME, store, other)
    assert (store / f"{NAME}.npz").read_bytes() == before


def test_a_run_may_be_stored_again(store, run):
    (store / f"{NAME}.npz").unlink()
    assert store_run(run, NAME, store, made_data()).details["test_opened"] == 2
    assert load_records(folder=store)[0].probabilities.shape == (50, 10)


def test_answers_without_their_record_are_noticed(store, run, monkeypatch):
    "Cut off between the two files: the old record does not speak for the new answers."
    real = fashion_nb.experiments.store.write_atomically
    monkeypatch.setattr(
        fashion_nb.experiments.store,
        "pack_answers",
        lambda answers: pack_answers(np.roll(answers, 1, axis=1)),
    )
    monkeypatch.setattr(
        fashion_nb.experiments.store,
        "write_atomically",
        lambda path, content: real(path, content) if path.suffix == ".npz" else os._exit,
    )
    store_run(run, NAME, store, made_data())
    with pytest.raises(StoreError, match="not those that were stored with it"):
        load_records(folder=store)[0].probabilities


def test_a_name_is_made_from_the_settings(tmp_path):
    records = [
        run_experiment(
            replace(SMALL, epochs=1, seed=seed),
            None,
            tmp_path / "store",
            tmp_path / "runs",
            made_data(),
            progress=False,
        )
        for seed in (0, 1)
    ]
    assert len({record.row for record in records}) == 1 and [
        record.name[-6:] for record in records
    ] == ["-seed0", "-seed1"]
    assert leaderboard(folder=tmp_path / "store", data=made_data()).seeds.tolist() == [2]


# Damage


def turn(path, start):
    content = bytearray(path.read_bytes())
    content[start : start + 30] = bytes(byte ^ 255 for byte in content[start : start + 30])
    path.write_bytes(content)


def as_array(path):
    packed = io.BytesIO()
    np.save(packed, np.full((50, 10), 0.1, np.float16))
    path.write_bytes(packed.getvalue())


def as_other_key(path):
    packed = io.BytesIO()
    np.savez(packed, answers=np.full((50, 10), 0.1, np.float16))
    path.write_bytes(packed.getvalue())


def write_roots(path, **arrays):
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    path.write_bytes(packed.getvalue())


TENTH = np.full((50, 10), 0.1, np.float16)
WINNERS, ROOTS = np.zeros(50, np.uint8), np.stack(
    [np.repeat(np.uint8([[4]] + [[1]] * 9), 50, axis=1), np.zeros((10, 50), np.uint8)]
)
ANSWERS = {
    "missing": Path.unlink,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("0.1 0.9"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "head turned": lambda path: turn(path, 0),
    "middle turned": lambda path: turn(path, 200),
    "array": as_array,
    "key": as_other_key,
    "fewer": lambda path: write_answers(path, TENTH[:49]),
    "more": lambda path: write_answers(path, np.concatenate([TENTH, TENTH])),
    "none": lambda path: write_answers(path, TENTH[:0]),
    "nine": lambda path: write_answers(path, np.full((50, 9), 1 / 9, np.float16)),
    "flat": lambda path: write_answers(path, TENTH.ravel()),
    "three axes": lambda path: write_answers(path, TENTH[..., None]),
    "number": lambda path: write_answers(path, np.float16(1)),
    "words": lambda path: write_answers(path, np.full((50, 10), "a")),
    "complex": lambda path: write_answers(path, TENTH.astype(complex)),
    "nan": lambda path: write_answers(path, TENTH * np.float16("nan")),
    "zeros": lambda path: write_answers(path, TENTH * 0),
    "negative": lambda path: write_answers(path,
        np.tile(np.array([-1, 2] + [0] * 8, np.float16), (50, 1))),
    "infinite": lambda path: write_answers(path, np.where(np.arange(10), TENTH, np.float16("inf"))),
    "sum": lambda path: write_answers(path, TENTH * np.float16(0.9)),
    "four bytes": lambda path: write_answers(path, TENTH.astype(np.float32)),
    "no winners": lambda path: write_roots(path, roots=ROOTS),
    "no roots": lambda path: write_roots(path, winners=WINNERS),
    "too few winners": lambda path: write_roots(path, winners=WINNERS[:49], roots=ROOTS),
    "other winners": lambda path: write_roots(path, winners=1 - WINNERS, roots=ROOTS),
    "winner out of range": lambda path: write_roots(path, winners=WINNERS + 10, roots=ROOTS),
    "roots too large": lambda path: write_roots(path, winners=WINNERS, roots=ROOTS * 2),
    "roots too small": lambda path: write_roots(path, winners=WINNERS, roots=ROOTS // 2),
    "roots of nine": lambda path: write_roots(path, winners=WINNERS, roots=ROOTS[:, :9]),
    "one plane": lambda path: write_roots(path, winners=WINNERS, roots=ROOTS[:1]),
    "flat roots": lambda path: write_roots(path, winners=WINNERS, roots=ROOTS.ravel()),
}


def left_out(store):
    "What the leaderboard says of the only run of a store, which it leaves out; then it is empty."
    with pytest.warns(UserWarning, match="^left out: ") as heard:
        assert not len(leaderboard(folder=store, data=made_data()))
    (warning,) = [one for one in heard if issubclass(one.category, UserWarning)]
    return str(warning.message).removeprefix("left out: ")


@pytest.mark.parametrize("damage", ANSWERS)
def test_damaged_answers(damage, store):
    ANSWERS[damage](store / f"{NAME}.npz")
    (record,) = load_records(folder=store)
    sentence = (
        rf"^the answers of {NAME} cannot be used \(.*\): restore {NAME}.json and .npz, or delete"
        r" both and run it again$"
    )
    for read in (lambda: record.probabilities, lambda: record.evaluation(made_data())):
        with pytest.raises(StoreError, match=sentence) as error:
            read()
        assert "\n" not in str(error.value)
    assert re.search(sentence, left_out(store))


@pytest.mark.parametrize(
    "content", [content for content in ANSWERS if content not in ("missing", "folder")]
)
def test_answers_that_are_none_are_refused_though_their_hash_is_right(content, store):
    path = store / f"{NAME}.npz"
    ANSWERS[content](path)
    details = json.loads((store / f"{NAME}.json").read_text())
    (store / f"{NAME}.json").write_text(
        json.dumps(details | {"answers_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    )
    told = left_out(store)
    assert re.search(
        rf"^the answers of {NAME} cannot be used \(.*\): restore {NAME}.json and .npz, or delete"
        r" both and run it again$",
        told,
    )
    assert "\n" not in told and "stored with it" not in told


def test_the_roots_that_the_damages_start_from_are_sound(tmp_path):
    write_roots(tmp_path / "sound.npz", winners=WINNERS, roots=ROOTS)
    np.testing.assert_allclose(
        unpack_answers((tmp_path / "sound.npz").read_bytes()),
        np.tile([64 / 73] + [1 / 73] * 9, (50, 1)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("right", [0, 19, 21])
def test_answers_that_contradict_the_accuracy_of_their_record_are_refused(right, store):
    fake(
        store,
        NAME,
        answers_with(20),
        metrics={"images": 50, "right": right, "hit_rate": right / 50},
    )
    sentence = (
        rf"^the answers of {NAME} cannot be used \(20 are right, where its record has {right}\):"
        " restore"
    )
    with pytest.raises(StoreError, match=sentence):
        load_records(folder=store)[0].evaluation(made_data())
    assert re.search(sentence, left_out(store))


def test_answers_of_two_bytes_a_probability_are_still_read(store, run):
    "As stores of before have them."
    answers, path = evaluate(run, "test", made_data()).probabilities, store / f"{NAME}.npz"
    write_answers(path, to_half(answers))
    details = json.loads((store / f"{NAME}.json").read_text())
    del details["metrics"]["calibration_error"]
    (store / f"{NAME}.json").write_text(
        json.dumps(details | {"answers_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    )
    np.testing.assert_allclose(load_records(folder=store)[0].probabilities, answers, atol=5e-4)
    assert leaderboard(folder=store, data=made_data())["mean"][0] == details["metrics"]["hit_rate"]


def test_where_pip_left_the_answers_out_the_record_speaks(store, monkeypatch):
    before = leaderboard(folder=store, data=made_data())
    monkeypatch.setattr(
        fashion_nb.experiments.store,
        "store_folder",
        lambda folder=None: store if folder is None else Path(folder),
    )
    (store / f"{NAME}.npz").unlink()
    after = leaderboard(data=made_data())
    assert before.recomputed.tolist() == [True] and after.recomputed.tolist() == [False]
    assert after[["mean", "low", "high", "rates"]].equals(before[["mean", "low", "high", "rates"]])
    np.testing.assert_allclose(
        after[["nll", "calibration_error"]], before[["nll", "calibration_error"]], atol=1e-6
    )
    for read in (
        lambda record: record.probabilities,
        lambda record: record.evaluation(made_data()),
    ):
        with pytest.raises(
            StoreError,
            match=(
                f"^the answers of {NAME} are not installed: pip leaves out .*; clone the"
                " repository, .*'pip install -e .'$"
            ),
        ):
            read(load_records()[0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_answers_with_any_byte_changed(kept, tmp_path_factory, data):
    sound = (kept / f"store/{NAME}.npz").read_bytes()
    folder = tmp_path_factory.getbasetemp() / "changed"
    (folder / "made").mkdir(parents=True, exist_ok=True)
    shutil.copy(kept / f"store/{NAME}.json", folder / "made")
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    (folder / f"{NAME}.npz").write_bytes(
        content[: data.draw(st.sampled_from((len(sound), len(sound), len(sound) // 2)))]
    )
    try:
        found = load_records(folder=folder)[0].probabilities
    except StoreError as error:
        assert "\n" not in str(error)
    else:
        # the bytes that were drawn were those that stood there
        assert (folder / f"{NAME}.npz").read_bytes() == sound
        np.testing.assert_array_equal(found, load_records(folder=kept / "store")[0].probabilities)


def without(key, inner=None):
    def change(details):
        (details[inner] if inner else details).pop(key)
        return details

    return change


RECORDS = {
    "empty": "",
    "cut": '{"config": {',
    "text": "no record",
    "list": "[]",
    "null": "null",
    "number": "3",
    "deep": "[" * 100_000,
    "bytes": b"\xff\xfe{}",
    "nothing": "{}",
    **{f"without {key}": without(key) for key in ("config", "history", "device", "backend",
        "versions", "commit", "data", "started", "seconds", "metrics", "answers_sha256")},
    "no right": without("right", "metrics"),
    "no images": without("images", "metrics"),
    "no hit rate": without("hit_rate", "metrics"),
    "no test hash": without("test_sha256", "data"),
    "metrics of another kind": lambda details: details | {"metrics": []},
    "data of another kind": lambda details: details | {"data": None},
    "history of another kind": lambda details: details | {"history": {}},
    "no epochs": lambda details: details | {"history": []},
    "epochs of another kind": lambda details: details | {"history": [1, 2]},
    "another seed": lambda details: details | {"config": asdict(replace(SMALL, seed=1))},
    "bad settings": lambda details: details | {"config": details["config"] | {"epochs": 0}},
    "unknown setting": lambda details: details | {"config": details["config"] | {"color": 1}},
    "unknown model": lambda details: details | {"config": details["config"] | {"model": "resnet"}},
    "settings of another kind": lambda details: details | {"config": "stride_2"},
}


@pytest.mark.parametrize("damage", RECORDS)
def test_damaged_records(damage, store):
    path, change = store / f"{NAME}.json", RECORDS[damage]
    content = json.dumps(change(json.loads(path.read_text()))) if callable(change) else change
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = names(store)
    for read in (
        lambda: load_records(folder=store),
        lambda: find_records_of([SMALL], store),
        lambda: reproduce(NAME, store, store / "runs", made_data(), progress=False),
    ):
        with pytest.raises(
            StoreError,
            match=(
                rf"(?s)^the stored result {NAME} cannot be used \(.*\): restore {NAME}.json and"
                r" .npz, or delete both and run it again$"
            ),
        ) as error:
            read()
        assert "\n" not in str(error.value)
    assert left_out(store) == str(error.value)
    assert names(store) == before


def test_a_folder_in_the_place_of_a_record(store):
    (store / f"{NAME}.json").unlink()
    (store / f"{NAME}.json").mkdir()
    with pytest.raises(StoreError, match="cannot be used"):
        load_records(folder=store)


def test_other_files_are_no_records(store):
    for name in (
        "made/notes.json",
        "made/Other-seed0.json",
        "made/deep/x-seed0.json",
        "loose-seed0.json",
        "teachers/wide.npz",
        "made/.small-seed1.json.abc",
    ):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("x")
    assert [record.name for record in load_records(folder=store)] == [NAME]


def test_groups(store, tmp_path):
    fake(store, "more/one-seed0", answers_with(20))
    assert [record.name for record in load_records("more", store)] == ["more/one-seed0"]
    with pytest.raises(
        StoreError, match="there are no stored results of 'less': expected one of made, more"
    ):
        load_records("less", store)
    assert load_records(folder=tmp_path / "nowhere") == []
    with pytest.raises(StoreError, match="expected one of none yet"):
        load_records("less", tmp_path / "nowhere")


# The leaderboard


def test_mean_deviation_and_interval_by_hand(store):
    for seed, right in enumerate((40, 45, 41)):
        fake(store, f"made/small-seed{seed}", answers_with(right), seconds=10.0 + seed)
    fake(store, "made/alone-seed7", answers_with(44), replace(SMALL, epochs=3))
    table = leaderboard(folder=store, data=made_data())
    assert table.row.tolist() == ["made/alone", "made/small"] and table.seeds.tolist() == [1, 3]
    row = table.loc[1]
    assert row["mean"] == pytest.approx(0.84)
    assert row["std"] == pytest.approx(math.sqrt((0.04**2 + 0.06**2 + 0.02**2) / 2)) and math.isnan(
        table.loc[0, "std"]
    )
    p, n, z = 0.84, 50, 1.959964
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(
        p * (1 - p) / n + z * z / (4 * n * n)
    ) / (1 + z * z / n)
    assert (row["low"], row["high"]) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert row["nll"] == pytest.approx(-(0.84 * math.log(0.91) + 0.16 * math.log(0.01)), abs=2e-3)
    # |0.91 - 0.80|, |0.91 - 0.90|, |0.91 - 0.82|
    assert row["calibration_error"] == pytest.approx((0.11 + 0.01 + 0.09) / 3, abs=2e-3)
    assert (
        row["seconds"] == 11
        and row["epochs"] == 2
        and row["device"] == load_records(folder=store)[0].details["device"]
    )
    model = build_model(SMALL.model)
    assert (row["parameters"], row["macs"]) == (model.count_params(), model_cost(model).total.macs)


def test_a_row_of_two_devices_names_both(store):
    for seed, device in enumerate(("CPU, 2 cores", "CPU, 1 core", "CPU, 2 cores")):
        fake(store, f"made/small-seed{seed}", answers_with(40), device=device)
    assert leaderboard(folder=store, data=made_data()).device.tolist() == [
        "CPU, 1 core and CPU, 2 cores"
    ]


def test_seeds_of_different_settings_are_no_row(store):
    fake(store, "made/small-seed1", answers_with(20), replace(SMALL, epochs=9))
    with pytest.raises(
        StoreError, match="the seeds of made/small were trained with different settings"
    ):
        leaderboard(folder=store, data=made_data())


@pytest.mark.parametrize(
    "test", [Split(made_data().test.images[:40], made_data().test.labels[:40]), made_split(50, 2)]
)
def test_answers_to_other_test_images_are_not_judged(test, store):
    other = replace(made_data(), test=test)
    for judge in (
        lambda: leaderboard(folder=store, data=other),
        lambda: load_records(folder=store)[0].evaluation(other),
    ):
        with pytest.raises(StoreError, match="other test images"):
            judge()


def test_an_empty_store(tmp_path):
    assert len(leaderboard(folder=tmp_path, data=made_data())) == 0


def test_published_points():
    table = published_points()
    assert (
        len(table) == len(PUBLISHED_POINTS)
        and table.accuracy.between(0.85, 0.98).all()
        and table.source.str.len().min() > 2
    )
    assert set(table.mark) == {"", "old data", "best epoch", "second-hand"}


# Trained again


def test_the_same_answers_again(store, tmp_path):
    found = reproduce("made/small", store, tmp_path / "runs", made_data(), progress=False)
    right = json.loads((store / f"{NAME}.json").read_text())["metrics"]["right"]
    assert (found.name, found.right_before, found.right_now, found.same_answers, found.images) == (
        NAME,
        right,
        right,
        50,
        50,
    )
    assert (
        found.agrees
        and found.p_value == 1
        and "the same answer to every image" in found.to_text()
        and found.largest_difference < 1e-3
    )
    assert names(store) == [f"{NAME}.json", f"{NAME}.npz"]


def test_a_difference_is_told(store, tmp_path):
    fake(store, NAME, answers_with(0))
    found = reproduce(NAME, store, tmp_path / "runs", made_data(), progress=False)
    assert (
        found.right_before == 0
        and not found.agrees
        and found.to_text().endswith("; that is more than chance explains")
    )


def test_it_is_trained_beside_what_lies_there(store, tmp_path):
    (tmp_path / "runs/again-made-small-seed0-1").mkdir(parents=True)
    (tmp_path / "runs/again-made-small-seed0-1/notes.txt").write_text("mine")
    reproduce(NAME, store, tmp_path / "runs", made_data(), progress=False)
    assert [path.name[-2:] for path in sorted((tmp_path / "runs").iterdir())] == ["-1", "-2"]
    assert [path.name for path in (tmp_path / "runs/again-made-small-seed0-1").iterdir()] == [
        "notes.txt"
    ]


def test_the_first_seed_is_the_lowest(store, tmp_path):
    for seed in (10, 2):
        fake(store, f"made/many-seed{seed}", answers_with(20))
    assert (
        reproduce("made/many", store, tmp_path / "runs", made_data(), progress=False).name
        == "made/many-seed2"
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_it_is_not_repeated_on_other_images(part, store, tmp_path):
    other = replace(made_data(), **{part: made_split(len(getattr(made_data(), part)), 9)})
    with pytest.raises(StoreError, match="other images than those of"):
        reproduce(NAME, store, tmp_path / "runs", other, progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", "made", "made/none", "made/small-seed1", "small"])
def test_what_is_not_stored_cannot_be_repeated(name, store, tmp_path):
    with pytest.raises(
        StoreError, match=rf"there is no stored result '{name}': expected one of made/small"
    ):
        reproduce(name, store, tmp_path / "runs", made_data())
    with pytest.raises(StoreError, match="expected one of none yet"):
        reproduce(name, tmp_path / "nowhere", tmp_path / "runs", made_data())


# What the package ships

SHIPPED = sorted(
    path.relative_to(store_folder()).with_suffix("").as_posix()
    for path in store_folder().glob("*/*-seed*.json")
)


@pytest.mark.parametrize(
    "name", SHIPPED or [pytest.param("", marks=pytest.mark.skip(reason="nothing is stored yet"))]
)
def test_a_stored_record_of_the_package(name, data):
    record = store_room._read(store_folder(), name)
    known = {"train_sha256": hashes(data, "train"), "test_sha256": hashes(data, "test")}
    if (soft := soft_labels_hash(record.config.teacher, known["train_sha256"])):
        known["soft_labels_sha256"] = soft
    assert record.details["data"] == known and record.details["test_opened"] == 1
    # what the grid of that name asks for
    assert GRIDS[record.group].configs(record.group)[name] == record.config
    found, told = record.evaluation(data), record.details["metrics"]
    assert (told["images"], told["right"], told["hit_rate"]) == (
        10_000,
        found.right,
        pytest.approx(found.right / 10_000),
    )
    assert told["negative_log_likelihood"] == pytest.approx(found.negative_log_likelihood, abs=2e-5)
    assert len(record.history) == record.config.epochs and (record.history.seconds > 0).all()
    assert record.details["seconds"] == pytest.approx(record.history.seconds.sum(), abs=0.01)
    assert told["calibration_error"] == pytest.approx(found.calibration().error, abs=2e-6)
    assert (store_folder() / f"{name}.json").stat().st_size < 20_000


def test_the_answers_of_the_package_take_60_percent_of_what_they_took():
    sizes = [(store_folder() / f"{name}.npz").stat().st_size for name in SHIPPED]
    # two bytes a probability, as npz: 139 KB on average
    assert len(sizes) >= 290 and np.mean(sizes) <= 0.6 * 139_000


@pytest.mark.parametrize("name", SHIPPED[::20])
def test_what_is_kept_of_answers_tells_the_same(name, data):
    """Stored answers, shaken by a per cent so that no digit of them is round, before they are
    packed and after."""
    random, labels = np.random.default_rng(len(name)), data.test.labels
    shaken = load_records(name.partition("/")[0])[0].probabilities.astype(np.float64)
    shaken = np.maximum(shaken, 1e-9) * np.exp(random.normal(0, 0.01, shaken.shape))
    before, other = (
        score(labels, each / each.sum(axis=1, keepdims=True))
        for each in (shaken, shaken * np.exp(random.normal(0, 0.3, shaken.shape)))
    )
    packed = pack_answers(before.probabilities)
    after, plain = score(labels, unpack_answers(packed)), io.BytesIO()
    np.testing.assert_array_equal(after.predictions, before.predictions)
    kept, asked = compare(after, other, labels), compare(before, other, labels)
    assert (kept.table.tolist(), kept.p) == (
        asked.table.tolist(),
        asked.p,
    ) and after.right == before.right
    for figure in (
        lambda one: one.negative_log_likelihood,
        lambda one: one.brier_score,
        lambda one: one.calibration().error,
        lambda one: one.calibration(adaptive=True).error,
    ):
        assert abs(figure(after) - figure(before)) < 1e-3
    assert np.abs(after.probabilities - before.probabilities).max() < 1e-3
    np.savez_compressed(plain, probabilities=to_half(before.probabilities))
    assert len(packed) < 0.6 * len(plain.getvalue())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "What pip installs: the wheel, unpacked, and compiled as pip does it."
    root, folder = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copy(root / name, folder)
    shutil.copytree(
        root / "fashion_nb", folder / "fashion_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    words = ("wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
        "-w", "made", ".")
    subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=folder, check=True, capture_output=True
    )
    (wheel,) = (folder / "made").iterdir()
    zipfile.ZipFile(wheel).extractall(folder / "site")
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=folder / "site", check=True)
    return folder / "site"


def test_what_pip_installs_is_at_most_12_megabytes(installed):
    sizes = {
        path.relative_to(installed).as_posix(): path.stat().st_size
        for path in installed.rglob("*")
        if path.is_file()
    }
    assert sum(sizes.values()) <= 12_000_000
    found = {
        kind: {
            Path(name).relative_to("fashion_nb/results").with_suffix("").as_posix()
            for name in sizes
            if name.endswith(kind) and "-seed" in name
        }
        for kind in (".json", ".npz")
    }
    assert found[".json"] == set(SHIPPED)
    groups = ("budget_1m", "budget_2m", "budget_5m", "budget_31m", "defaults")
    assert found[".npz"] == {
        name
        for name in SHIPPED
        if name.startswith(
            (*(f"{group}/" for group in groups), "fashon_recipe/stride_2-", "record/long-")
        )
    }


@pytest.mark.slow
def test_an_installed_package_has_its_leaderboard_and_says_which_answers_it_lacks(
    installed, tmp_path
):
    code = """
import json
from fashion_nb.core.errors import FashionNbError
from fashion_nb.experiments.leaderboard import leaderboard
from fashion_nb.experiments.store import load_records

records = {record.name: record for record in load_records()}
try:
    records["dense/units25-seed0"].probabilities
except FashionNbError as error:
    said = str(error)
shown = ["row", "mean", "nll", "calibration_error", "recomputed"]
tables = {
    group: leaderboard(group)[shown].to_dict("list") for group in ("dense", "defaults")
}
print(json.dumps([len(records), records["budget_1m/best-seed0"].probabilities.shape, said, tables]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    count, shape, said, tables = json.loads(answer.stdout)
    assert (count, shape) == (len(SHIPPED), [10_000, 10]) and list(tmp_path.iterdir()) == []
    assert (
        said.startswith("the answers of dense/units25-seed0 are not installed: ")
        and "\n" not in said
    )
    for group, table in tables.items():
        here = leaderboard(group)
        assert table["row"] == here.row.tolist() and table["mean"] == here["mean"].tolist()
        np.testing.assert_allclose(
            [table[key] for key in ("nll", "calibration_error")],
            here[["nll", "calibration_error"]].to_numpy().T,
            atol=1e-6,
        )
        assert set(table["recomputed"]) == {group == "defaults"} and here.recomputed.all()


_HASHES = {}


def hashes(data, part):
    if part not in _HASHES:
        _HASHES[part] = data_hashes(getattr(data, part))
    return _HASHES[part]


def test_half_precision_loses_nothing_that_is_counted():
    rows = np.random.default_rng(0).dirichlet(np.full(10, 0.2), 1_000).astype(np.float32)
    back = from_half(to_half(rows))
    np.testing.assert_array_equal(back.argmax(axis=1), rows.argmax(axis=1))
    np.testing.assert_allclose(back.sum(axis=1), 1, atol=0.01)
