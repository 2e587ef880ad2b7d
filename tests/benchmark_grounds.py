"""How well the shipped network names garments on many grounds, and how often it is wrong without a
warning.

    python tests/benchmark_grounds.py            prints the table
    python tests/benchmark_grounds.py --write    also keeps it, in fashion_nb/results/grounds.json

120 test images. Thresholds and the reading of dark grounds were chosen on made photos of others, of
the first 2,120; their labels count what is right.
"""
import json
import platform
import sys
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np

import fashion_nb
from fashion_nb.core.files import write_atomically
from fashion_nb.data.fashion_mnist import load_fashion_mnist
from fashion_nb.prediction.image import PredictError, prepare
from fashion_nb.prediction.photos import EFFECTS, GROUNDS, made_photo
from fashion_nb.prediction.predict import answers_to, as_classifier
from fashion_nb.training.machine import git_commit

FIRST, COUNT = 6_000, 120
CASES = [(ground, None) for ground in GROUNDS] + [
    (ground, effect) for ground in ("white", "wooden table") for effect in EFFECTS
]


def measure(ground, effect, images, labels, network):
    "Shares of one case: right, warned, wrong without a warning."
    random, prepared, kept = np.random.default_rng(2026), [], []
    for number, image in enumerate(images):
        try:
            photo = made_photo(image, ground, random, number % 2 == 0, effect)
            prepared.append(prepare(photo))
            kept.append(number)
        except PredictError:  # refused: a warning that cannot be missed
            continue
    answers = answers_to([""] * len(kept), prepared, network)
    right, warned = np.zeros(len(images), bool), np.ones(len(images), bool)
    for number, answer in zip(kept, answers):
        right[number] = answer.probabilities.argmax() == labels[number]
        warned[number] = answer.warning is not None
    return {"right": right.mean(), "warned": warned.mean(), "wrong": (~right & ~warned).mean()}


def main():
    data, network, rows = load_fashion_mnist(), as_classifier(None), []
    part = slice(FIRST, FIRST + COUNT)
    images, labels = data.test.images[part, ..., 0], data.test.labels[part]
    for ground, effect in CASES:
        found = measure(ground, effect, images, labels, network)
        rows.append({"ground": ground, "effect": effect} | found)
        print(f"{ground:20} {effect or '':22} right {found['right']:5.1%}, warned"
            f" {found['warned']:5.1%}, wrong without a warning {found['wrong']:5.1%}", flush=True)
    if "--write" in sys.argv:
        told = {
            "photos": COUNT, "first": FIRST, "rows": rows, "date": date.today().isoformat(),
            "commit": git_commit(), "python": platform.python_version(),
            "opencv": metadata.version("opencv-python-headless"),
        }
        path = Path(fashion_nb.__file__).parent / "results" / "grounds.json"
        write_atomically(path, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
