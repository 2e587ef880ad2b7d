"""What other people bring is used as it was meant, or it is said that this cannot be told: never a
wrong figure without a word."""
import json
import os

import numpy as np
import pytest
from commands import fashion_nb
from PIL import Image

from fashion_nb.data.fashion_mnist import load_fashion_mnist
from fashion_nb.data.idx import CLASS_NAMES, FILES, DataError
from fashion_nb.evaluation.evaluation import evaluate
from fashion_nb.evaluation.metrics import EvaluateError
from fashion_nb.experiments.store import StoreError, unpack_answers
from fashion_nb.models.classifier import PIXELS, Classifier, classifier
from fashion_nb.prediction.predict import predict


def trained(data, pixels, activation="softmax", name="somebodys"):
    "A small network that somebody has trained on pixels of some range."
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu", name="a|b"),
            keras.layers.Dense(10, activation=activation),
        ],
        name=name,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation != "softmax")
    model.compile(keras.optimizers.Adam(0.003), loss, run_eagerly=True)
    learned = "0..1" if pixels == "0..255" else pixels
    inputs = Classifier(model, learned, (28, 28, 1)).inputs(data.train.images[:6_000])
    model.fit(inputs, data.train.labels[:6_000], batch_size=100, verbose=0)
    if pixels == "0..255":  # the same network of bytes
        model.layers[1].kernel.assign(model.layers[1].kernel / 255)
    return model


@pytest.fixture(scope="module")
def fractions(data, tmp_path_factory):
    "A saved network of pixels from 0 to 1, with names that TensorFlow's graphs refuse."
    path = tmp_path_factory.mktemp("somebody") / "mine.keras"
    trained(data, "0..1", name="my net").save(path)
    return path


def accuracy(model, data, pixels):
    inputs = Classifier(model, pixels, (28, 28, 1)).inputs(data.test.images)
    parts = [np.asarray(model(inputs[k : k + 500])).argmax(axis=1) for k in range(0, 10_000, 500)]
    return (np.concatenate(parts) == data.test.labels).mean()


def test_a_network_of_fractions_is_evaluated_on_fractions(data, fractions, tmp_path):
    import keras

    model = keras.saving.load_model(fractions)
    right, wrong = accuracy(model, data, "0..1"), accuracy(model, data, "0..255")
    answer = fashion_nb("evaluate", fractions, "--output", tmp_path / "results", "--json")
    told = json.loads(answer.stdout)
    assert answer.returncode == 0 and told["hit_rate"] == pytest.approx(right, abs=2e-4)
    assert told["details"]["pixels"] == "0..1"
    assert "takes pixels 0..1" in told["details"]["notes"][0]
    assert "takes pixels 0..1" in (tmp_path / "results/metrics.txt").read_text()
    stated = evaluate(model, data=data, pixels="0..255")
    assert stated.accuracy == pytest.approx(wrong, abs=2e-4) and "notes" not in stated.details
    assert stated.negative_log_likelihood > 3 * told["negative_log_likelihood"]


def test_a_photo_is_shown_to_it_as_fractions(data, fractions, tmp_path):
    Image.fromarray(data.test.images[0, ..., 0]).save(tmp_path / "boot.png")
    answer = fashion_nb("predict", tmp_path / "boot.png", "--model", fractions)
    assert answer.returncode == 0 and "boot.png: Ankle boot" in answer.stdout
    assert "takes pixels 0..1" in answer.stderr


def test_without_data_the_pixels_are_asked_for(fractions, empty_home, data):
    import keras

    model = keras.saving.load_model(fractions)
    with pytest.raises(Exception, match="no data set is here to try it on.*state them with pixels"):
        predict(data.test.images[0, ..., 0], model)
    assert predict(data.test.images[0, ..., 0], model, pixels="0..1").class_name == "Ankle boot"


@pytest.mark.parametrize("pixels", PIXELS)
def test_each_range_is_found(data, pixels):
    found = classifier(trained(data, pixels, activation="linear"), data=data)
    assert (found.pixels, found.logits) == (pixels, True)
    assert "softmax is applied" in found.notes[1]


def test_each_output_may_stand_for_another_class(data):
    import keras

    model = trained(data, "0..1")
    order = np.argsort(CLASS_NAMES)
    alphabetical = keras.Sequential([model, keras.layers.Dense(10, use_bias=False)], name="sorted")
    alphabetical.layers[-1].set_weights([np.eye(10, dtype=np.float32)[:, order]])
    with pytest.raises(EvaluateError, match="another order of classes.*--classes"):
        evaluate(alphabetical, data=data)
    known = evaluate(alphabetical, data=data, classes=sorted(CLASS_NAMES))
    assert known.accuracy == pytest.approx(evaluate(model, data=data).accuracy, abs=1e-4)


def test_the_hash_that_is_printed_was_measured(contents, tmp_path, monkeypatch):
    "Two bytes changed and the time put back: the size and the time of the file tell nothing."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    for file in FILES:
        (folder / file.name).write_bytes(contents[file.name])
    load_fashion_mnist(folder)
    path = folder / FILES[2].name
    before = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(5_000)
        stream.write(bytes(255 - value for value in contents[path.name][5_000:5_002]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DataError, match="has the SHA-256"):
        load_fashion_mnist(folder)
    answer = fashion_nb("data", "--folder", folder)
    assert answer.returncode == 2 and "verified" not in answer.stdout


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_the_command_offers_the_ranges_that_there_are(command):
    "It cannot ask for them: the help must not import what they are computed with."
    from fashion_nb.cli.main import cli

    (option,) = [one for one in cli.commands[command].params if one.name == "pixels"]
    assert list(option.type.choices) == list(PIXELS)


def packed(**arrays):
    import io

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


LARGEST = np.finfo(np.float16).max


@pytest.mark.parametrize(
    "answers",
    [
        np.full((50, 10), LARGEST, np.float16),
        np.full((50, 10), np.nan, np.float16),
        np.full((50, 10), np.inf, np.float16),
        np.full((50, 10), 0.2, np.float16),
        np.tile(np.float16([1.5, -0.5] + 8 * [0]), (50, 1)),
        np.full((50, 10), 0.1, np.float64),
    ],
    ids=["largest", "no numbers", "endless", "sum to two", "negative", "another type"],
)
def test_stored_answers_that_are_no_probabilities_are_refused(answers):
    with pytest.raises(StoreError, match="they "):
        unpack_answers(packed(probabilities=answers))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_roots_that_no_network_gave_are_refused(value):
    roots = np.full((2, 10, 50), value, np.uint8)
    with pytest.raises(StoreError, match="they "):
        unpack_answers(packed(winners=np.zeros(50, np.uint8), roots=roots))
