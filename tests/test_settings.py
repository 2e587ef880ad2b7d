"""The settings of a training run: each changes the result, bad ones are refused, and JSON brings them back."""
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import made_data

import fashion_nb.settings
from fashion_nb.models import list_models
from fashion_nb.runs import latest_checkpoint
from fashion_nb.settings import OPTIMIZERS, SCHEDULES, TrainConfig, TrainError, make_optimizer, schedule_share
from fashion_nb.train import train

FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]
BASE = TrainConfig(epochs=2, batch_size=50, optimizer="adamw", validation_size=40)

# Each field changes the result

CHANGES = {  # field: a value that leads to other weights; the first is tried in the quick run, the others with --slow
    "model": ["mnist_classifier_32p_64p"],
    "epochs": [3],
    "batch_size": [40],
    "optimizer": ["sgd", *(name for name in OPTIMIZERS if name not in ("sgd", "adamw"))],
    "learning_rate": [0.001],
    "schedule": ["constant", *(name for name in SCHEDULES if name not in ("constant", "cosine"))],
    "warmup_epochs": [0.5],
    "weight_decay": [0.5],
    "label_smoothing": [0.1],
    "augmentation": ["shift=1", "flip", "first_set", "second_set", "erase", "mixup", "cutmix", "rotation", "zoom", "translate"],
    "average": [0.9],
    "precision": ["mixed_bfloat16"],
    "validation_size": [50, 0],
    "seed": [1],
}
ELSEWHERE = {"device", "distribution"}  # they say where to compute, not what


def trained(config, folder):
    "The weights in use after a small training, and the run."
    run = train(config, folder, made_data(), progress=False)
    arrays, history = latest_checkpoint(run.folder)
    assert len(history) == config.epochs and all(math.isfinite(row["loss"]) for row in history)
    part = "averaged/" if config.average else "net/"
    return [array for name, array in sorted(arrays.items()) if name.startswith(part)], run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return trained(BASE, tmp_path_factory.mktemp("base") / "run")


def test_there_is_a_case_for_each_field():
    assert CHANGES.keys() | ELSEWHERE == set(FIELDS) and not CHANGES.keys() & ELSEWHERE


def test_the_same_settings_give_the_same_weights(base, tmp_path):
    again, _ = trained(BASE, tmp_path / "again")
    assert [array.tobytes() for array in again] == [array.tobytes() for array in base[0]]


CASES = [pytest.param(field, value, marks=pytest.mark.slow if k else ()) for field, values in CHANGES.items() for k, value in enumerate(values)]


@pytest.mark.parametrize("field, value", CASES)
def test_each_field_changes_the_result(base, tmp_path, field, value):
    changed, run = trained(dataclasses.replace(BASE, **{field: value}), tmp_path / "run")
    assert run.folder.joinpath("config.json").read_text() != base[1].folder.joinpath("config.json").read_text()
    assert getattr(run.config, field) == value
    kernels = [(one, other) for one, other in zip(base[0], changed) if one.ndim > 1]
    if field == "model":
        assert [array.shape for array in base[0]] != [array.shape for array in changed]
    else:
        assert all(np.abs(one - other).max() > 1e-6 for one, other in kernels)


def test_the_device_is_the_one_asked_for(base, tmp_path):
    import keras

    weights, run = trained(dataclasses.replace(BASE, device="cpu"), tmp_path / "cpu")
    assert run.record["device"].startswith("CPU") and run.record["sessions"][-1]["device"] == run.record["device"]
    try:
        gpus = keras.distribution.list_devices("gpu")
    except RuntimeError:
        gpus = []
    if gpus:
        _, run = trained(dataclasses.replace(BASE, device="gpu"), tmp_path / "gpu")
        assert not run.record["device"].startswith("CPU") and not base[1].record["device"].startswith("CPU")
        return
    assert [array.tobytes() for array in weights] == [array.tobytes() for array in base[0]]  # auto is the processor here
    with pytest.raises(TrainError, match=r"device is 'gpu', but tensorflow finds no GPU here: expected a machine with one, or device='auto'"):
        train(dataclasses.replace(BASE, device="gpu"), tmp_path / "gpu", made_data(), progress=False)
    assert not (tmp_path / "gpu").exists()


def test_one_device_cannot_share_the_work(tmp_path):
    config = dataclasses.replace(BASE, distribution="data_parallel", device="cpu")
    with pytest.raises(TrainError, match=r"distribution is 'data_parallel', but there is one device \(.*\): expected at least two, or 'none'"):
        train(config, tmp_path / "run", made_data(), progress=False)
    assert not (tmp_path / "run").exists()


def test_each_schedule_is_another():
    steps = np.arange(100)
    shares = [schedule_share(steps, name, 100, warmup) for name in SCHEDULES for warmup in (0, 10)]
    assert all(np.abs(one - other).max() > 0.01 for k, one in enumerate(shares) for other in shares[:k])
    assert all(share.min() >= 0 and share.max() <= 1 and np.isfinite(share).all() for share in shares)


@pytest.mark.parametrize("name", SCHEDULES)
def test_keras_computes_the_same_schedule(name):
    from keras.ops import convert_to_numpy

    rate = fashion_nb.settings.make_schedule(0.02, name, 60, 6)
    found = [float(convert_to_numpy(rate(step))) for step in range(0, 60, 7)]
    np.testing.assert_allclose(found, 0.02 * schedule_share(np.arange(0, 60, 7), name, 60, 6), rtol=1e-4, atol=1e-8)


def stepped(name, **options):
    "A kernel and a bias after three steps with the same gradient."
    import keras

    keras.utils.clear_session(free_memory=False)
    optimizer = make_optimizer(name, 0.1, **options)
    kernel, bias = keras.Variable(np.ones((2, 2)), dtype="float32", name="kernel"), keras.Variable(np.ones(2), dtype="float32", name="bias")
    for _ in range(3):
        optimizer.apply([keras.ops.full((2, 2), 0.5), keras.ops.full((2,), 0.5)], [kernel, bias])
    return np.concatenate([keras.ops.convert_to_numpy(one).ravel() for one in (kernel, bias)]).round(6)


def test_each_optimizer_steps_in_its_own_way():
    found = {name: stepped(name) for name in OPTIMIZERS}
    for k, name in enumerate(found):
        for other in list(found)[:k]:
            if {name, other} != {"adam", "adamw"}:  # without decay they are the same
                assert not np.array_equal(found[name], found[other]), (name, other)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
def test_decay_shrinks_kernels_but_not_biases(name):
    plain, decayed = stepped(name), stepped(name, weight_decay=0.3)
    assert (np.abs(decayed[:4]) < np.abs(plain[:4])).all() or not np.array_equal(plain[:4], decayed[:4])
    np.testing.assert_allclose(plain[4:], decayed[4:], atol=1e-6)


# Bad values


@pytest.mark.parametrize("field", ["epochs", "batch_size", "validation_size", "seed"])
@pytest.mark.parametrize("value", [-1, 10**12, 1.5, 2.0, True, np.True_, "3", None, math.nan, [1], np.array(3), np.timedelta64(3)])
def test_whole_numbers_are_checked(field, value):
    with pytest.raises(TrainError, match=rf"(?s)^{field} is .*: expected a whole number from [\d,]+ to [\d,]+$"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["learning_rate", "warmup_epochs", "weight_decay", "label_smoothing", "average"])
@pytest.mark.parametrize("value", [-0.1, 1e5, math.nan, math.inf, -math.inf, "fast", None, True, 1j, np.complex64(0.1), [0.1], np.float32("nan")])
def test_real_numbers_are_checked(field, value):
    with pytest.raises(TrainError, match=rf"^{field} is .*: expected a number (from 0 to|above 0, at most) [\d.,]+$"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("field", ["model", "optimizer", "schedule", "precision", "device", "distribution"])
@pytest.mark.parametrize("value", ["resnet_152", "", None, 3, ["stride_2"], "Stride_2", "ADAM", np.array(["a", "b"]), {}])
def test_words_are_checked(field, value):
    with pytest.raises(TrainError, match=rf"^{field} is .*: expected one of \w+(, \w+)+$") as error:
        TrainConfig(**{field: value})
    assert getattr(TrainConfig(), field) in str(error.value)


@pytest.mark.parametrize("value", ["blur", "flip=2", "flip+flip", "", "none+flip", "rotation=x", None, 3, "shift=1.5", "mixup=nan", "flip+"])
def test_augmentation_is_checked(value):
    with pytest.raises(TrainError, match=r"^augmentation is "):
        TrainConfig(augmentation=value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"validation_size": 3}, "validation_size is 3: expected 0, or at least 10"),
        ({"warmup_epochs": 6}, "warmup_epochs is 6 of 6 epochs: expected fewer"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1 with adam, which has none: expected 0, or adamw"),
    ],
)
def test_fields_that_do_not_go_together(values, said):
    with pytest.raises(TrainError, match=said):
        TrainConfig(**values)


def test_all_problems_are_named_at_once():
    bad = dict.fromkeys(FIELDS, -1)
    with pytest.raises(TrainError) as error:
        TrainConfig(**bad)
    named = [part.split(" is -1: ")[0] for part in str(error.value).split("; ")]
    assert sorted(named) == sorted(FIELDS)
    assert "\n" not in str(error.value)


def test_bad_values_are_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError):
        train(TrainConfig(epochs=0), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_limits_themselves_are_allowed():
    TrainConfig(epochs=1, batch_size=1, validation_size=0, seed=0, learning_rate=1e-12, weight_decay=0, label_smoothing=0, average=0)
    TrainConfig(epochs=10_000, batch_size=60_000, validation_size=59_990, seed=2**32 - 1, learning_rate=10, warmup_epochs=9_999.9)
    TrainConfig(optimizer="adamw", weight_decay=10, label_smoothing=0.9, average=0.99999, validation_size=10)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


# To and from JSON


@st.composite
def configs(draw):
    epochs, optimizer = draw(st.integers(1, 10_000)), draw(st.sampled_from(list(OPTIMIZERS)))
    return TrainConfig(
        model=draw(st.sampled_from(list_models())),
        epochs=epochs,
        batch_size=draw(st.integers(1, 60_000)),
        optimizer=optimizer,
        learning_rate=draw(st.floats(0, 10, exclude_min=True)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        warmup_epochs=draw(st.floats(0, epochs, exclude_max=True)),
        weight_decay=0 if optimizer == "adam" else draw(st.floats(0, 10)),
        label_smoothing=draw(st.floats(0, 0.9)),
        augmentation=draw(st.sampled_from(["none", "flip", "shift=2+flip+erase=0.5", "second_set", "mixup+cutmix"])),
        average=draw(st.floats(0, 0.99999)),
        precision=draw(st.sampled_from(["float32", "mixed_bfloat16"])),
        validation_size=draw(st.one_of(st.just(0), st.integers(10, 59_990))),
        seed=draw(st.integers(0, 2**32 - 1)),
        device=draw(st.sampled_from(["auto", "cpu", "gpu"])),
        distribution=draw(st.sampled_from(["none", "data_parallel"])),
    )


@settings(max_examples=60, deadline=None)
@given(configs(), configs())
def test_json_brings_it_back(one, other):
    back = TrainConfig.from_json(one.to_json())
    assert back == one and back.identity == one.identity and back.to_json() == one.to_json()
    assert len(one.identity) == 12 and int(one.identity, 16) >= 0
    assert (one == other) == (one.identity == other.identity)
    for field in dataclasses.fields(TrainConfig):
        assert type(getattr(one, field.name)) is type(field.default)


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=2), max_leaves=3)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_whatever_is_given_it_is_taken_or_named(values):
    try:
        config = TrainConfig(**values)
    except TrainError as error:
        assert any(str(error).startswith(f"{field} is ") for field in FIELDS) and "expected" in str(error)
    else:
        assert TrainConfig.from_json(config.to_json()) == config


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | ANYTHING.map(json.dumps) | st.dictionaries(st.text(max_size=6), ANYTHING, max_size=2).map(json.dumps))
def test_text_that_is_no_configuration(text):
    try:
        TrainConfig.from_json(text)
    except TrainError as error:
        assert "expected" in str(error)
    else:
        assert isinstance(json.loads(text), dict)


def test_each_field_changes_the_identity():
    def another(field, value):
        values = {field: value} | ({"optimizer": "adamw"} if field == "weight_decay" else {})
        return TrainConfig(**values).identity

    found = [another(field, values[0]) for field, values in CHANGES.items() if values[0] != getattr(TrainConfig(), field)]
    found += [TrainConfig(device="cpu").identity, TrainConfig(distribution="data_parallel").identity, TrainConfig().identity]
    assert len(set(found)) == len(found) == len(FIELDS) + 1


def test_numpy_numbers_become_pythons():
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(1), average=np.float16(0.5), weight_decay=0)
    assert [type(value) for value in dataclasses.astuple(config)] == [type(field.default) for field in dataclasses.fields(TrainConfig)]
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig(learning_rate=1).identity == TrainConfig(learning_rate=1.0).identity


def test_a_missing_field_takes_its_default():
    assert TrainConfig.from_json("{}") == TrainConfig() and TrainConfig.from_json('{"seed": 2}') == TrainConfig(seed=2)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"epochs": 2,}', '{"epochs": "2"}', '{"epoch": 2}', '{"model": {}}', '{"learning_rate": NaN}'])
def test_bad_json_is_refused(text):
    with pytest.raises(TrainError, match="expected"):
        TrainConfig.from_json(text)
