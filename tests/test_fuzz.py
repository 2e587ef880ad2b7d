"""Thousands of broken records, checkpoints, pictures and options: an answer or one sentence each.

200 inputs of each kind in every run, 10,000 with --slow; FASHION_NB_SEED tries others.
"""
import io
import json
import os
import random
import resource
import shutil

import numpy as np
import pytest
from commands import fashion_nb
from PIL import Image
from small_runs import made_data

from fashion_nb.core.errors import FashionNbError
from fashion_nb.experiments.store import load_records, unpack_answers
from fashion_nb.prediction.image import prepare
from fashion_nb.training.checkpoints import list_checkpoints, read_checkpoint
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train
from fashion_nb.training.runs import load_run

SEED = int(os.environ.get("FASHION_NB_SEED", "0"))
MOST = 2**30  # bytes by which memory may grow
pytestmark = pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=pytest.mark.slow)], ids=["quick", "whole"]
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    small = TrainConfig(model="conv4/4 gap", epochs=1, batch_size=60, validation_size=40)
    return train(small, folder, made_data(), progress=False)


@pytest.fixture(autouse=True)
def bounded():
    "Memory stays within bounds."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


STRANGE = [None, True, -1, 0, 10**30, 1e999, "", "x" * 3_000, "\x1b[2J", [], {}, [[]], "../..", 0.5]


def mutated_json(value, draw):
    "The same with one value exchanged, left out or put in."
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        if draw.random() < 0.3:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: mutated_json(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], mutated_json(value[place], draw), *value[place + 1 :]]
    return draw.choice(STRANGE)


def mutated_bytes(content, draw):
    "The same with some bytes changed, cut off or doubled."
    found = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        found[draw.randrange(len(found))] = draw.randrange(256)
    if draw.random() < 0.2:
        del found[draw.randrange(len(found)) :]
    if draw.random() < 0.1:
        found += bytes(found)
    return bytes(found)


def in_a_sentence(function, *arguments):
    "The function answers, or refuses with one of the package's errors, in one line."
    try:
        function(*arguments)
    except FashionNbError as error:
        assert str(error)
        return 1
    return 0


def test_records_of_runs(count, run, tmp_path):
    draw, refused = random.Random(SEED), 0
    shutil.copytree(run.folder, tmp_path / "run")
    files = {name: (run.folder / name).read_text() for name in ("record.json", "config.json")}
    for _ in range(count):
        name = draw.choice(sorted(files))
        if draw.random() < 0.7:
            content = json.dumps(mutated_json(json.loads(files[name]), draw)).encode()
        else:
            content = mutated_bytes(files[name].encode(), draw)
        (tmp_path / "run" / name).write_bytes(content)
        refused += in_a_sentence(load_run, tmp_path / "run")
        (tmp_path / "run" / name).write_text(files[name])
    assert 0.2 * count < refused < count


def test_records_of_the_store(count, tmp_path):
    from fashion_nb.experiments.store import store_folder

    draw, refused = random.Random(SEED + 1), 0
    (tmp_path / "defaults").mkdir()
    target = tmp_path / "defaults" / "stride_2-seed0.json"
    whole = json.loads((store_folder() / "defaults" / target.name).read_text())
    for _ in range(count):
        target.write_text(json.dumps(mutated_json(whole, draw)))
        refused += in_a_sentence(load_records, None, tmp_path)
    assert 0.2 * count < refused


def test_checkpoints(count, run, tmp_path):
    draw, refused = random.Random(SEED + 2), 0
    path = max(list_checkpoints(run.folder).values())
    content, target = path.read_bytes(), tmp_path / path.name
    for _ in range(count):
        target.write_bytes(mutated_bytes(content, draw))
        refused += in_a_sentence(read_checkpoint, target)
    assert refused > 0.5 * count


def test_stored_answers(count):
    from fashion_nb.experiments.store import store_folder

    draw = random.Random(SEED + 3)
    content = next((store_folder() / "defaults").glob("*.npz")).read_bytes()
    for _ in range(count // 5):
        in_a_sentence(unpack_answers, mutated_bytes(content, draw))


def test_pictures(count, data, tmp_path):
    draw, refused = random.Random(SEED + 4), 0
    picture = Image.fromarray(np.kron(data.test.images[0, ..., 0], np.ones((3, 3), np.uint8)))
    contents = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        picture.save(file, kind)
        contents.append(file.getvalue())
    for number in range(count):
        (tmp_path / "picture").write_bytes(mutated_bytes(draw.choice(contents), draw))
        refused += in_a_sentence(prepare, tmp_path / "picture")
    assert refused > 0.05 * count


COMMANDS = (
    "cost", "field", "train", "runs", "leaderboard", "models", "data", "predict", "evaluate",
)  # fmt: skip
OPTIONS = (
    "--json", "--epochs", "--model", "--seed", "--config", "--folder", "--output", "--layer",
    "--convention", "--input-shape", "--batch-size", "--results", "--tail", "--pixels", "--classes",
    "--learning-rate", "--augmentation", "--teacher", "--nonsense", "--recursive", "--split",
)  # fmt: skip
VALUES = (
    "", "0", "-1", "nan", "1e999", "x" * 300, "a\nb", "\x1b[2J", "/dev/null/x", "~nobody-here/x",
    "stride_9", "conv8/", "0..1", "T-shirt,Bag", "..", "é", "a,b", "[]", "--", "-",
)  # fmt: skip


def test_options(count, tmp_path, monkeypatch):
    "Whatever is typed is answered or refused in a line; what would be trained is not."
    
    def no_training(*_, **__):
        raise FashionNbError("nothing is trained here")

    monkeypatch.setattr("fashion_nb.training.loop.train", no_training)
    draw = random.Random(SEED + 5)
    for _ in range(count // 4):
        words = [draw.choice(COMMANDS)]
        for _ in range(draw.randint(0, 4)):
            words.append(draw.choice(OPTIONS) if draw.random() < 0.5 else draw.choice(VALUES))
        answer = fashion_nb(*words, cwd=tmp_path)
        assert answer.returncode in (0, 2), (words, answer.stderr)
        assert "Traceback" not in answer.stderr and "not foreseen" not in answer.stderr, words
