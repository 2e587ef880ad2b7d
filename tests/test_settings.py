"""The settings of a training run: each changes the result, bad ones are refused, and JSON brings
them back."""
import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import made_data

from fashion_nb.data.fashion_mnist import Split
from fashion_nb.models.zoo import list_models
from fashion_nb.training import schedules as schedules_room
from fashion_nb.training import soft_labels as soft_labels_room
from fashion_nb.training.augment import parse_augmentation
from fashion_nb.training.checkpoints import latest_checkpoint
from fashion_nb.training.config import TrainConfig, parse_teacher
from fashion_nb.training.loop import train
from fashion_nb.training.machine import data_hashes
from fashion_nb.training.schedules import (
    OPTIMIZERS,
    SCHEDULES,
    TrainError,
    make_optimizer,
    schedule_share,
)

FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]
BASE = TrainConfig(epochs=2, batch_size=50, optimizer="adamw", validation_size=40)

# Each field changes the result

# field: a value that leads to other weights; the first is tried in the quick run, the others with
# --slow
CHANGES = {
    "model": ["mnist_classifier_32p_64p", "conv8/2 res8 gap", "bare conv8/2 flat dense20"],
    "epochs": [3],
    "batch_size": [40],
    "optimizer": ["sgd", *(name for name in OPTIMIZERS if name not in ("sgd", "adam", "adamw"))],
    "learning_rate": [0.001],
    "schedule": ["constant", *(name for name in SCHEDULES if name not in ("constant", "cosine"))],
    "warmup_epochs": [0.5],
    "weight_decay": [0.5],
    "label_smoothing": [0.1],
    "augmentation": ["shift=1", "flip", "first_set", "second_set", "erase", "mixup", "cutmix",
        "rotation", "zoom", "translate"],
    "teacher": ["wide=0.5", "wide=1"],
    "average": [0.9],
    "precision": ["mixed_bfloat16"],
    "validation_size": [50, 0],
    "seed": [1],
}
ELSEWHERE = {"device", "distribution"}  # they say where to compute, not what


@pytest.fixture(scope="module", autouse=True)
def soft_labels(tmp_path_factory):
    """Soft labels of a teacher 'wide' for the made data, in the place of the package's; drawn, not
    learned."""
    folder = tmp_path_factory.mktemp("teachers")
    rows = np.random.default_rng(0).dirichlet(np.full(10, 0.3), len(made_data().train))
    np.savez_compressed(folder / "wide.npz", probabilities=rows.astype(np.float16))
    (folder / "wide.json").write_text(
        json.dumps(
            {"teachers": [], "views": 1, "seed": 0, "train_sha256": data_hashes(made_data().train)}
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_labels_room, "soft_folder", lambda asked=None: folder)
        yield folder


def trained(config, folder):
    "The weights in use after a small training, and the run."
    run = train(config, folder, made_data(), progress=False)
    arrays, history = latest_checkpoint(run.folder)
    assert len(history) == config.epochs and all(math.isfinite(row["loss"]) for row in history)
    part = "averaged/" if config.average else "net/"
    return [array for name, array in sorted(arrays.items()) if name.startswith(part)], run


@pytest.fixture(scope="module")
def base(tmp_path_factory, soft_labels):
    return trained(BASE, tmp_path_factory.mktemp("base") / "run")


def test_there_is_a_case_for_each_field():
    assert CHANGES.keys() | ELSEWHERE == set(FIELDS) and not CHANGES.keys() & ELSEWHERE


def test_the_same_settings_give_the_same_weights(base, tmp_path):
    again, _ = trained(BASE, tmp_path / "again")
    assert [array.tobytes() for array in again] == [array.tobytes() for array in base[0]]


# each is a training: the quick run has a field of each part of the engine
IN_EVERY_RUN = {"model", "optimizer", "schedule", "augmentation", "average", "precision", "seed"}
CASES = [
    pytest.param(
        field, value, marks=pytest.mark.slow if k or field not in IN_EVERY_RUN else ()
    )
    for field, values in CHANGES.items()
    for k, value in enumerate(values)
]


@pytest.mark.parametrize("field, value", CASES)
def test_each_field_changes_the_result(base, tmp_path, field, value):
    changed, run = trained(dataclasses.replace(BASE, **{field: value}), tmp_path / "run")
    assert (
        run.folder.joinpath("config.json").read_text()
        != base[1].folder.joinpath("config.json").read_text()
    )
    assert getattr(run.config, field) == value
    kernels = [(one, other) for one, other in zip(base[0], changed) if one.ndim > 1]
    if field == "model":
        assert [array.shape for array in base[0]] != [array.shape for array in changed]
    else:
        assert all(np.abs(one - other).max() > 1e-6 for one, other in kernels)


@pytest.mark.slow
def test_adam_is_adamw_without_decay(base, tmp_path):
    assert not BASE.weight_decay
    changed, _ = trained(dataclasses.replace(BASE, optimizer="adam"), tmp_path / "run")
    assert all(np.array_equal(one, other) for one, other in zip(base[0], changed, strict=True))


def test_the_device_is_the_one_asked_for(base, tmp_path):
    import keras

    weights, run = trained(dataclasses.replace(BASE, device="cpu"), tmp_path / "cpu")
    assert (
        run.record["device"].startswith("CPU")
        and run.record["sessions"][-1]["device"] == run.record["device"]
    )
    try:
        gpus = keras.distribution.list_devices("gpu")
    except RuntimeError:
        gpus = []
    if gpus:
        _, run = trained(dataclasses.replace(BASE, device="gpu"), tmp_path / "gpu")
        assert not run.record["device"].startswith("CPU") and not base[1].record[
            "device"
        ].startswith("CPU")
        return
    # auto is the processor here
    assert [array.tobytes() for array in weights] == [array.tobytes() for array in base[0]]
    with pytest.raises(
        TrainError,
        match=(
            r"device is 'gpu', but tensorflow finds no GPU here: expected a machine with one, or"
            r" device='auto'"
        ),
    ):
        train(
            dataclasses.replace(BASE, device="gpu"), tmp_path / "gpu", made_data(), progress=False
        )
    assert not (tmp_path / "gpu").exists()


def test_one_device_cannot_share_the_work(tmp_path):
    config = dataclasses.replace(BASE, distribution="data_parallel", device="cpu")
    with pytest.raises(
        TrainError,
        match=(
            r"distribution is 'data_parallel', but there is one device \(.*\): expected at least"
            r" two, or 'none'"
        ),
    ):
        train(config, tmp_path / "run", made_data(), progress=False)
    assert not (tmp_path / "run").exists()


def test_each_schedule_is_another():
    steps = np.arange(100)
    shares = [schedule_share(steps, name, 100, warmup) for name in SCHEDULES for warmup in (0, 10)]
    assert all(
        np.abs(one - other).max() > 0.01 for k, one in enumerate(shares) for other in shares[:k]
    )
    assert all(
        share.min() >= 0 and share.max() <= 1 and np.isfinite(share).all() for share in shares
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_keras_computes_the_same_schedule(name):
    from keras.ops import convert_to_numpy

    rate = schedules_room.make_schedule(0.02, name, 60, 6)
    found = [float(convert_to_numpy(rate(step))) for step in range(0, 60, 7)]
    np.testing.assert_allclose(
        found, 0.02 * schedule_share(np.arange(0, 60, 7), name, 60, 6), rtol=1e-4, atol=1e-8
    )


def stepped(name, **options):
    "A kernel and a bias after three steps with the same gradient."
    import keras

    keras.utils.clear_session(free_memory=False)
    optimizer = make_optimizer(name, 0.1, **options)
    kernel, bias = keras.Variable(np.ones((2, 2)), dtype="float32", name="kernel"), keras.Variable(
        np.ones(2), dtype="float32", name="bias"
    )
    for _ in range(3):
        optimizer.apply([keras.ops.full((2, 2), 0.5), keras.ops.full((2,), 0.5)], [kernel, bias])
    return np.concatenate(
        [keras.ops.convert_to_numpy(one).ravel() for one in (kernel, bias)]
    ).round(6)


def test_each_optimizer_steps_in_its_own_way():
    found = {name: stepped(name) for name in OPTIMIZERS}
    for k, name in enumerate(found):
        for other in list(found)[:k]:
            if {name, other} != {"adam", "adamw"}:  # without decay they are the same
                assert not np.array_equal(found[name], found[other]), (name, other)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
def test_decay_shrinks_kernels_but_not_biases(name):
    plain, decayed = stepped(name), stepped(name, weight_decay=0.3)
    assert (np.abs(decayed[:4]) < np.abs(plain[:4])).all() or not np.array_equal(
        plain[:4], decayed[:4]
    )
    np.testing.assert_allclose(plain[4:], decayed[4:], atol=1e-6)


# Bad values


@pytest.mark.parametrize("field", ["epochs", "batch_size", "validation_size", "seed"])
@pytest.mark.parametrize(
    "value",
    [
        -1,
        10**12,
        1.5,
        2.0,
        True,
        np.True_,
        "3",
        None,
        math.nan,
        [1],
        np.array(3),
        np.timedelta64(3),
    ],
)
def test_whole_numbers_are_checked(field, value):
    with pytest.raises(
        TrainError, match=rf"(?s)^{field} is .*: expected a whole number from [\d,]+ to [\d,]+$"
    ):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    "field", ["learning_rate", "warmup_epochs", "weight_decay", "label_smoothing", "average"]
)
@pytest.mark.parametrize(
    "value",
    [
        -0.1,
        1e5,
        math.nan,
        math.inf,
        -math.inf,
        "fast",
        None,
        True,
        1j,
        np.complex64(0.1),
        [0.1],
        np.float32("nan"),
    ],
)
def test_real_numbers_are_checked(field, value):
    with pytest.raises(
        TrainError,
        match=rf"^{field} is .*: expected a number (from 0 to|above 0, at most) [\d.,]+$",
    ):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    "field", ["model", "optimizer", "schedule", "precision", "device", "distribution"]
)
@pytest.mark.parametrize(
    "value", ["resnet_152", "", None, 3, ["stride_2"], "Stride_2", "ADAM", np.array(["a", "b"]), {}]
)
def test_words_are_checked(field, value):
    with pytest.raises(
        TrainError,
        match=(
            rf"^{field} is .*: expected one of \w+(, \w+)+(, or a description such as 'conv16/2"
            r" res16 gap')?$"
        ),
    ) as error:
        TrainConfig(**{field: value})
    assert getattr(TrainConfig(), field) in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "blur",
        "flip=2",
        "flip+flip",
        "",
        "none+flip",
        "rotation=x",
        None,
        3,
        "shift=1.5",
        "mixup=nan",
        "flip+",
    ],
)
def test_augmentation_is_checked(value):
    with pytest.raises(TrainError, match=r"^augmentation is "):
        TrainConfig(augmentation=value)


@pytest.mark.parametrize(
    "value",
    [
        "x", "", "wide", "wide=", "wide=0", "wide=0.0", "wide=2", "wide=1.01", "wide=-0.5",
        "Wide=0.5", "=0.5", "none=", "../wide=0.5", "wide=nan", "wide=1e-3", "wide=0.5 ",
        "wide =0.5", "wide=0.5+deep=0.5", "NONE", 3, 0.5, None, ["none"], b"none",
    ],
)  # fmt: skip
def test_teachers_are_checked(value):
    with pytest.raises(
        TrainError,
        match=(
            r"^teacher is .*: expected 'none', or a name and a share above 0 and up to 1, such as"
            r" 'wide=0.5'$"
        ),
    ):
        TrainConfig(teacher=value)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("none", ("", 0)),
        ("wide=0.5", ("wide", 0.5)),
        ("wide=1", ("wide", 1)),
        ("a_9=.25", ("a_9", 0.25)),
        ("none=1", ("none", 1)),
    ],
)
def test_teachers_that_can_be_asked(value, expected):
    assert parse_teacher(TrainConfig(teacher=value).teacher) == expected


@pytest.mark.parametrize(
    "value, said",
    [
        ("conv16", "exactly one gap or flat"),
        ("conv16 gap flat", "exactly one"),
        ("gap conv16", "a convolution"),
        ("conv16 gap conv8", "wrong side"),
        ("conv16x2 gap", "is for inv only"),
        ("conv16/9 gap", "is no block"),
        ("stride_2 gap", "is no block"),
    ],
)
def test_descriptions_of_models_are_checked(value, said):
    with pytest.raises(TrainError, match=rf"^model is '{value}': .*{said}"):
        TrainConfig(model=value)


def test_a_described_model_is_named_by_its_words():
    one = TrainConfig(model="conv16/2 res16 gap")
    assert TrainConfig.from_json(one.to_json()) == one and one.identity != TrainConfig().identity
    assert (
        TrainConfig(model=" conv16/2   res16 gap ").identity
        == one.identity
        != TrainConfig(model="conv16/2 res16 flat").identity
    )


@pytest.mark.parametrize(
    "values, said",
    [
        ({"validation_size": 3}, "validation_size is 3: expected 0, or at least 10"),
        ({"warmup_epochs": 6}, "warmup_epochs is 6 of 6 epochs: expected fewer"),
        (
            {"weight_decay": 0.1},
            "weight_decay is 0.1 with adam, which has none: expected 0, or adamw",
        ),
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
    TrainConfig(
        epochs=1,
        batch_size=1,
        validation_size=0,
        seed=0,
        learning_rate=1e-12,
        weight_decay=0,
        label_smoothing=0,
        average=0,
    )
    TrainConfig(
        epochs=10_000,
        batch_size=60_000,
        validation_size=59_990,
        seed=2**32 - 1,
        learning_rate=10,
        warmup_epochs=9_999.9,
    )
    TrainConfig(
        optimizer="adamw", weight_decay=10, label_smoothing=0.9, average=0.99999, validation_size=10
    )


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


# To and from JSON


@st.composite
def configs(draw):
    epochs, optimizer = draw(st.integers(1, 10_000)), draw(st.sampled_from(list(OPTIMIZERS)))
    return TrainConfig(
        model=draw(
            st.sampled_from(
                [*list_models(), "conv16/2 res16 gap", "silu 2*inv8x2k5/2 se flat dense20 drop0.1"]
            )
        ),
        epochs=epochs,
        batch_size=draw(st.integers(1, 60_000)),
        optimizer=optimizer,
        learning_rate=draw(st.floats(0, 10, exclude_min=True)),
        schedule=draw(st.sampled_from(SCHEDULES)),
        warmup_epochs=draw(st.floats(0, epochs, exclude_max=True)),
        weight_decay=0 if optimizer == "adam" else draw(st.floats(0, 10)),
        label_smoothing=draw(st.floats(0, 0.9)),
        augmentation=draw(
            st.sampled_from(
                ["none", "flip", "shift=2+flip+erase=0.5", "second_set", "mixup+cutmix"]
            )
        ),
        teacher=draw(st.sampled_from(["none", "wide=0.5", "wide=1", "deep_2=.1"])),
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


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_whatever_is_given_it_is_taken_or_named(values):
    try:
        config = TrainConfig(**values)
    except TrainError as error:
        assert any(str(error).startswith(f"{field} is ") for field in FIELDS) and "expected" in str(
            error
        )
    else:
        assert TrainConfig.from_json(config.to_json()) == config


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40)
    | ANYTHING.map(json.dumps)
    | st.dictionaries(st.text(max_size=6), ANYTHING, max_size=2).map(json.dumps)
)
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

    found = [
        another(field, values[0])
        for field, values in CHANGES.items()
        if values[0] != getattr(TrainConfig(), field)
    ]
    found += [
        TrainConfig(device="cpu").identity,
        TrainConfig(distribution="data_parallel").identity,
        TrainConfig().identity,
    ]
    assert len(set(found)) == len(found) == len(FIELDS) + 1


@pytest.mark.parametrize(
    "values", [{}, {"model": "stride_1", "seed": 3}, {"augmentation": "flip+shift=2", "epochs": 9}]
)
def test_without_a_teacher_the_identity_is_the_one_of_old(values):
    config = TrainConfig(**values)
    kept = dataclasses.asdict(config) | {"augmentation": parse_augmentation(config.augmentation)}
    assert kept.pop("teacher") == "none"  # a field that came later: runs of before keep their names
    assert (
        config.identity == hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[
            :12
        ]
    )
    taught = dataclasses.replace(config, teacher="wide=0.5")
    assert (
        len({
            config.identity,
            taught.identity,
            dataclasses.replace(taught, teacher="wide=0.4").identity,
            dataclasses.replace(taught, teacher="deep=0.5").identity,
        })
        == 4
    )


def test_the_default_identity_is_written_down():
    assert TrainConfig().identity == "509b5642a101"


# Soft labels


def test_missing_soft_labels_are_named_and_the_folder_can_be_used_again(soft_labels, tmp_path):
    config = dataclasses.replace(BASE, epochs=1, teacher="nobody=0.5")
    with pytest.raises(
        TrainError,
        match=(
            "the soft labels 'nobody' cannot be read .*: restore them, or choose others; there are"
            " wide"
        ),
    ) as error:
        train(config, tmp_path / "run", made_data(), progress=False)
    assert (
        "\n" not in str(error.value)
        and not list(tmp_path.rglob("*.npz"))
        and not list(tmp_path.rglob("*.keras"))
    )
    (soft_labels / "nobody.npz").write_bytes((soft_labels / "wide.npz").read_bytes())
    try:
        with pytest.raises(TrainError, match="restore nobody.json, or make new ones"):
            train(config, tmp_path / "run", made_data(), progress=False)
        assert not (tmp_path / "run").exists()
        (soft_labels / "nobody.json").write_bytes((soft_labels / "wide.json").read_bytes())
        assert trained(config, tmp_path / "run")[1].status == "finished"
    finally:
        for path in soft_labels.glob("nobody.*"):
            path.unlink()


def test_soft_labels_of_other_images_are_refused(soft_labels, tmp_path):
    other = dataclasses.replace(
        made_data(), train=Split(made_data().train.images[::-1], made_data().train.labels)
    )
    with pytest.raises(
        TrainError, match="the soft labels 'wide' were made from other images than these"
    ):
        train(
            dataclasses.replace(BASE, epochs=1, teacher="wide=0.5"),
            tmp_path / "run",
            other,
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_a_taught_run_knows_its_soft_labels(soft_labels, tmp_path):
    config = dataclasses.replace(BASE, epochs=1, teacher="wide=0.5")
    run = trained(config, tmp_path / "run")[1]
    assert (
        run.record["data"]["soft_labels_sha256"]
        == hashlib.sha256((soft_labels / "wide.npz").read_bytes()).hexdigest()
    )
    assert (
        "soft_labels_sha256"
        not in trained(dataclasses.replace(BASE, epochs=1), tmp_path / "alone")[1].record["data"]
    )


def write_soft(path, array):
    with path.open("wb") as file:
        np.savez_compressed(file, probabilities=array)


def flip_bytes(path):
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(byte ^ 255 for byte in content[200:240])
    path.write_bytes(content)


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "turned": flip_bytes,
    "text": lambda path: path.write_text("0.1 0.9"),
    "array": lambda path: np.save(path.open("wb"), np.full((240, 10), 0.1)),
    "key": lambda path: np.savez(path.open("wb"), answers=np.full((240, 10), 0.1)),
    "few": lambda path: write_soft(path, np.full((239, 10), 0.1, np.float16)),
    "nine": lambda path: write_soft(path, np.full((240, 9), 0.1, np.float16)),
    "number": lambda path: write_soft(path, np.array(0.1)),
    "words": lambda path: write_soft(path, np.full((240, 10), "a")),
    "nan": lambda path: write_soft(path, np.full((240, 10), np.nan, np.float16)),
    "zeros": lambda path: write_soft(path, np.zeros((240, 10), np.float16)),
    "negative": lambda path: write_soft(path,
        np.tile(np.array([-1, 2] + [0] * 8, np.float16), (240, 1))),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_soft_labels_that_cannot_be_used(damage, soft_labels, tmp_path, recwarn):
    path = tmp_path / "wide.npz"
    path.write_bytes((soft_labels / "wide.npz").read_bytes())
    assert soft_labels_room.load_soft_labels("wide", 240).shape == (240, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_labels_room, "soft_folder", lambda asked=None: tmp_path)
        DAMAGED[damage](path)
        with pytest.raises(TrainError, match="^the soft labels 'wide' ") as error:
            soft_labels_room.load_soft_labels("wide", 240)
    assert "\n" not in str(error.value) and not [
        one for one in recwarn if issubclass(one.category, RuntimeWarning)
    ]


def test_the_share_of_the_teacher(soft_labels):
    labels = made_data().train.labels
    assert soft_labels_room.beliefs(labels, "none") is labels
    one_hot, soft = np.eye(10)[labels], soft_labels_room.load_soft_labels("wide", 240)
    np.testing.assert_allclose(soft_labels_room.beliefs(labels, "wide=1"), soft, atol=1e-6)
    np.testing.assert_allclose(
        soft_labels_room.beliefs(labels, "wide=0.25"), 0.75 * one_hot + 0.25 * soft, atol=1e-6
    )
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)


def test_numpy_numbers_become_pythons():
    config = TrainConfig(
        epochs=np.int64(3),
        learning_rate=np.float32(0.5),
        seed=np.uint8(1),
        average=np.float16(0.5),
        weight_decay=0,
    )
    assert [type(value) for value in dataclasses.astuple(config)] == [
        type(field.default) for field in dataclasses.fields(TrainConfig)
    ]
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig(learning_rate=1).identity == TrainConfig(learning_rate=1.0).identity


def test_a_missing_field_takes_its_default():
    assert TrainConfig.from_json("{}") == TrainConfig() and TrainConfig.from_json(
        '{"seed": 2}'
    ) == TrainConfig(seed=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"epochs": 2,}',
        '{"epochs": "2"}',
        '{"epoch": 2}',
        '{"model": {}}',
        '{"learning_rate": NaN}',
    ],
)
def test_bad_json_is_refused(text):
    with pytest.raises(TrainError, match="expected"):
        TrainConfig.from_json(text)
