"""Small files that unpack to gigabytes, and many large ones: memory stays within bounds."""
import io
import json
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from fashion_nb.core.files import MIB
from fashion_nb.experiments.store import StoreError, unpack_answers
from fashion_nb.training.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from fashion_nb.training.soft_labels import load_soft_labels

HISTORY = [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": None, "val_accuracy": None,
    "seconds": 1.0}]


def peak():
    "The most memory that this process has used, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bomb(path, about):
    "An .npz of a megabyte that unpacks to two gigabytes."
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**29,)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in about.items():
            with archive.open(f"{name}.npy", "w") as part:
                np.lib.format.write_array(part, np.array(value))
        with archive.open("probabilities.npy", "w", force_zip64=True) as part:
            part.write(header.getvalue())
            block = bytes(16 * MIB)
            for _ in range(128):
                part.write(block)
    return path


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    about = json.dumps({"arrays": ["probabilities"], "history": HISTORY})
    return bomb(folder / "epoch-0001.npz", {"about": about})


def test_nothing_of_a_bomb_is_unpacked(bombs, tmp_path):
    before = peak()
    with pytest.raises(CheckpointError, match="is damaged .its arrays take"):
        read_checkpoint(bombs)
    with pytest.raises(StoreError, match="cannot be read .its arrays take"):
        unpack_answers(bombs.read_bytes())
    (tmp_path / "wide.npz").write_bytes(bombs.read_bytes())
    with pytest.raises(Exception, match="cannot be read .its arrays take"):
        load_soft_labels("wide", 60_000, tmp_path)
    assert peak() - before < 200 * MIB


def test_a_checkpoint_is_held_against_what_its_network_needs(tmp_path):
    path = write_checkpoint(tmp_path, {"net/000": np.zeros(4 * MIB)}, HISTORY)
    assert read_checkpoint(path)[0]["net/000"].size == 4 * MIB
    with pytest.raises(CheckpointError, match="where at most"):
        read_checkpoint(path, most=16 * MIB)


MANY = """
import resource, sys
from pathlib import Path
from fashion_nb.prediction.files import picture_files, predict_each
from fashion_nb.prediction.predict import as_classifier

files = picture_files([Path(sys.argv[1])]) * int(sys.argv[2])
found = sum(1 for _ in predict_each(files[:64], as_classifier(None)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = sum(1 for _ in predict_each(files, as_classifier(None)))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(found, before, after)
"""


@pytest.mark.parametrize("number", [128, pytest.param(5_000, marks=pytest.mark.slow)])
def test_many_large_pictures_take_no_more_than_a_few(number, data, tmp_path):
    picture = Image.fromarray(data.test.images[0, ..., 0]).resize((1_200, 1_200)).convert("RGB")
    for name in range(8):
        picture.save(tmp_path / f"{name}.jpg")
    command = [sys.executable, "-c", MANY, str(tmp_path), str(number // 8)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found, before, after = map(int, told)
    assert found == number and after - before < 150 * 1024  # KiB
    assert after < 1.5 * 2**20
