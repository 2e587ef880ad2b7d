"""Augmentation: every value counts, both back ends and both ways to compile agree to the last bit,
odd batches work."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fashion_nb.training.augment import (
    AUGMENTATION_SETS,
    AUGMENTATIONS,
    AugmentError,
    augmented,
    draw_augmentation,
    parse_augmentation,
    plot_augmentation,
    targets,
)

COMBINED = [
    "shift=3+flip",
    "rotation+flip+shift",
    "first_set+cutmix",
    "rotation+mixup",
    "shift+mixup+cutmix+erase",
    "first_set+shift+flip+mixup+cutmix+erase",
]
TEXTS = ["none", *AUGMENTATIONS, *AUGMENTATION_SETS, *COMBINED]
OTHER_VALUE = {"rotation": 30, "zoom": 0.4, "translate": 0.05, "shift": 5, "flip": 0.9, "mixup": 2,
    "cutmix": 0.2, "erase": 0.9}

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
INDEX = np.random.default_rng(1).permutation(300)[:50].astype(np.int32)


def changed(text, seed=0, images=IMAGES, index=INDEX):
    from keras import ops

    return ops.convert_to_numpy(
        augmented(images, index, draw_augmentation(text, index, np.random.default_rng(seed)))
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_and_every_value_changes_the_images(name):
    plain, default, other = changed("none"), changed(name), changed(f"{name}={OTHER_VALUE[name]}")
    np.testing.assert_array_equal(plain, IMAGES[INDEX])
    assert (default != plain).any() and (other != plain).any() and (default != other).any()
    given = changed(f"{name}={AUGMENTATIONS[name].default:g}")
    np.testing.assert_array_equal(given, default)


@pytest.mark.parametrize(
    "name",
    [
        "rotation=0",
        "zoom=0",
        "translate=0",
        "shift=0",
        "flip=0",
        "erase=0",
        "rotation=0+zoom=0+translate=0+flip=0+shift=0",
    ],
)
def test_a_value_of_zero_changes_nothing(name):
    np.testing.assert_array_equal(changed(name), IMAGES[INDEX])


@pytest.mark.parametrize("text", TEXTS[1:])
def test_same_generator_same_images_other_generator_other_images(text):
    np.testing.assert_array_equal(changed(text), changed(text))
    assert (changed(text) != changed(text, seed=1)).any()


def drawn_by_hand(asked, index, random):
    "The draw as one procedure: the order and the formulas by which the stored runs were trained."
    count, found = len(index), {}

    def boxes(height, width, top, left):
        return np.clip(np.stack([top, left, top + height, left + width], axis=1), 0, 28).astype(
            np.int32
        )

    if asked.keys() & {"rotation", "zoom", "translate"}:
        center, back, inner, last = (
            np.eye(3),
            np.eye(3),
            np.tile(np.eye(3), (count, 1, 1)),
            np.tile(np.eye(3), (count, 1, 1)),
        )
        center[:2, 2], back[:2, 2] = 13.5, -13.5
        angle = np.deg2rad(random.uniform(-1, 1, count) * asked.get("rotation", 0))
        zoom = 1 + random.uniform(-1, 1, (count, 2)) * asked.get("zoom", 0)
        inner[:, :2, 2] = random.uniform(-1, 1, (count, 2)) * asked.get("translate", 0) * 28
        inner[:, 0, 0], inner[:, 0, 1] = np.cos(angle) * zoom[:, 0], -np.sin(angle) * zoom[:, 1]
        inner[:, 1, 0], inner[:, 1, 1] = np.sin(angle) * zoom[:, 0], np.cos(angle) * zoom[:, 1]
    if "shift" in asked:
        found["shift"] = random.integers(
            -int(asked["shift"]), int(asked["shift"]) + 1, (count, 2), dtype=np.int32
        )
    if "flip" in asked:
        found["flip"] = random.random(count) < asked["flip"]
    if asked.keys() & {"mixup", "cutmix"}:
        found["partner"] = index[random.permutation(count)]
    if "mixup" in asked:
        found["mixup"] = (
            np.rint(256 * random.beta(asked["mixup"], asked["mixup"], count)) / 256
        ).astype(np.float32)
    if "cutmix" in asked:
        side = np.rint(28 * np.sqrt(1 - random.beta(asked["cutmix"], asked["cutmix"], count)))
        corner = np.floor(random.random((count, 2)) * 28 - side[:, None] / 2 + 0.5)
        found["cutmix"] = boxes(side, side, corner[:, 0], corner[:, 1])
    if "mixup" in asked and "cutmix" in asked:
        blended = random.random(count) < 0.5
        found["mixup"] = np.where(blended, found["mixup"], np.float32(1))
        found["cutmix"] = np.where(blended[:, None], np.int32(0), found["cutmix"])
    if "erase" in asked:
        area, aspect = random.uniform(0.02, 0.4, count) * 784, np.exp(
            random.uniform(np.log(0.3), -np.log(0.3), count)
        )
        height, width = (
            np.clip(np.rint(np.sqrt(each)), 1, 28) for each in (area * aspect, area / aspect)
        )
        top, left = (np.floor(random.random(count) * (29 - each)) for each in (height, width))
        found["erase"] = boxes(height, width, top, left) * (random.random(count) < asked["erase"])[
            :, None
        ].astype(np.int32)
        found["noise"] = random.integers(0, 64, count, dtype=np.int32)
    if asked.keys() & {"rotation", "zoom", "translate"}:
        if (flip := found.pop("flip", None)) is not None:
            last[flip, 0] = [-1, 0, 27]
        if (shift := found.pop("shift", None)) is not None:
            last[:, :2, 2] += shift[:, ::-1]
        found["matrix"] = (center @ inner @ back @ last)[:, :2].reshape(-1, 6).astype(np.float32)
    return found


def share_by_hand(choices):
    "What a target keeps, in the order of arithmetic by which the stored runs were trained."
    share = choices["mixup"] if "mixup" in choices else np.ones(len(choices["partner"]), np.float32)
    if "cutmix" in choices:
        top, left, bottom, right = choices["cutmix"].T
        share = share * (1 - ((bottom - top) * (right - left)).astype(np.float32) / 784)
    return share


@pytest.mark.parametrize("seed", [0, [0, 1], 12345])
@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "rotation=0+mixup",
        "zoom=0.9+translate=1+shift=27+flip=0.9",
        "translate+erase",
        "mixup+cutmix",
    ],
)
def test_a_seed_draws_to_the_last_bit_what_it_always_drew(text, seed):
    "Stored runs can be repeated only as long as this holds."
    found = draw_augmentation(text, INDEX, np.random.default_rng(seed))
    expected = drawn_by_hand(dict(parse_augmentation(text)), INDEX, np.random.default_rng(seed))
    assert {name: (rows.dtype, rows.tobytes()) for name, rows in found.items()} == {
        name: (rows.dtype, rows.tobytes()) for name, rows in expected.items()
    }
    if "partner" in found:
        beliefs = np.random.default_rng(2).dirichlet(np.ones(10), 300).astype(np.float32)
        own, other = beliefs[INDEX], beliefs[found["partner"]]
        mixed = other + share_by_hand(found)[:, None] * (own - other)
        assert (
            targets(beliefs, INDEX, found).tobytes()
            == (mixed * (1 - 0.0) + 0.0 / 10).astype(np.float32).tobytes()
        )


@pytest.mark.parametrize("text", TEXTS)
def test_images_are_float32_within_the_range_of_pixels_and_choices_are_small(text):
    found = changed(text)
    assert found.shape == (50, 28, 28, 1) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 255
    choices = draw_augmentation(text, INDEX, np.random.default_rng(0))
    assert all(len(rows) == 50 and rows.dtype.itemsize <= 4 for rows in choices.values())
    assert sum(rows.nbytes for rows in choices.values()) <= 50 * 784 / 10


@pytest.mark.parametrize("text", TEXTS)
def test_the_draw_is_made_in_order_so_a_batch_is_a_slice(text):
    "An epoch's choices are cut into batches: image by image the result is that of the whole."
    from keras import ops

    choices = draw_augmentation(text, INDEX, np.random.default_rng(0))
    whole = changed(text)
    for part in (slice(0, 32), slice(32, 50), slice(7, 8)):
        rows = {name: each[part] for name, each in choices.items()}
        np.testing.assert_array_equal(
            ops.convert_to_numpy(augmented(IMAGES, INDEX[part], rows)), whole[part]
        )
        np.testing.assert_array_equal(targets(np.arange(300) % 10, INDEX[part], rows),
                                      targets(np.arange(300) % 10, INDEX, choices)[part])


def test_the_order_of_the_text_does_not_matter():
    np.testing.assert_array_equal(changed("erase+flip+shift"), changed("shift + flip + erase"))
    assert parse_augmentation("erase+flip+shift") == parse_augmentation(
        "shift=2+flip=0.5+erase=0.5"
    )


def test_sets_are_the_source_projects():
    assert parse_augmentation("first_set") == (("rotation", 8), ("zoom", 0.2), ("translate", 0.2))
    assert parse_augmentation("second_set") == (("rotation", 8), ("zoom", 0.2), ("translate", 0.02))
    assert (changed("first_set") != changed("second_set")).any()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "flip++shift",
        "flop",
        "flip=",
        "=2",
        "flip=1.01",
        "flip=-0.1",
        "flip=nan",
        "shift=28",
        "shift=0.5",
        "rotation=181",
        "zoom=1",
        "mixup=0",
        "cutmix=inf",
        "none+flip",
        "flip+flip",
        "flip=0.1=2",
        "first_set+zoom",
        None,
        2,
        ("flip",),
    ],
)
def test_bad_text_is_refused(text):
    with pytest.raises(AugmentError) as caught:
        draw_augmentation(text, INDEX, np.random.default_rng(0))
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(AugmentError) as caught:
        parse_augmentation("flop+shift=99+flip=2+erase+erase")
    assert [
        name in str(caught.value)
        for name in ("'flop'", "shift=99", "flip=2", "erase is asked for twice")
    ] == [True] * 4


def test_targets_mix_and_smooth():
    labels = np.arange(300) % 10
    plain = targets(labels, INDEX, {})
    np.testing.assert_array_equal(plain.argmax(axis=1), labels[INDEX])
    assert plain.dtype == np.float32 and set(np.unique(plain)) == {0, 1}
    smoothed = targets(labels, INDEX, {}, smoothing=0.2)
    np.testing.assert_allclose(np.unique(smoothed), [0.02, 0.82], rtol=1e-6)
    choices = draw_augmentation("mixup+cutmix", INDEX, np.random.default_rng(0))
    mixed = targets(labels, INDEX, choices, smoothing=0.1)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)
    assert (mixed != targets(labels, INDEX, {}, smoothing=0.1)).any()
    assert targets(np.array([0, 2]), np.array([1]), {}, classes=3).tolist() == [[0, 0, 1]]


def test_an_image_that_leaves_the_picture_is_gone_and_a_full_turn_is_none():
    from keras import ops

    far = {"matrix": np.tile(np.array([[1, 0, 1000, 0, 1, -1000]], np.float32), (50, 1))}
    assert not ops.convert_to_numpy(augmented(IMAGES, INDEX, far)).any()
    half = {"matrix": np.tile(np.array([[-1, 0, 27, 0, -1, 27]], np.float32), (50, 1))}
    np.testing.assert_array_equal(
        ops.convert_to_numpy(augmented(IMAGES, INDEX, half)), IMAGES[INDEX][:, ::-1, ::-1]
    )


def test_plot_shows_a_strip():
    import matplotlib

    matplotlib.use("agg")
    ax = plot_augmentation(IMAGES[:4], "flip=1")
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (30, 120) and ax.get_ylabel() == "flip=1"
    np.testing.assert_array_equal(shown[1:29, 31:59], IMAGES[1, :, ::-1, 0])


SCRIPT = '''
import sys
import numpy as np
import keras
from keras import ops
from fashion_nb.training.augment import augmented, draw_augmentation

images, index, texts = np.load(sys.argv[1]), np.load(sys.argv[2]), sys.argv[4:]
bank, found = keras.Variable(images, trainable=False, dtype="uint8"), {}
for text in texts:
    choices = draw_augmentation(text, index, np.random.default_rng(0))
    found[text] = ops.convert_to_numpy(augmented(bank, index, choices))
    if keras.backend.backend() == "jax":
        import jax
        ways = [jax.jit(augmented)]
        assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
    else:
        import tensorflow as tf
        shapes = {
            name: tf.TensorSpec((None, *rows.shape[1:]), rows.dtype)
            for name, rows in choices.items()
        }
        signature = [
            tf.TensorSpec((None, 28, 28, 1), "uint8"), tf.TensorSpec((None,), "int32"), shapes
        ]

        def change(bank, index, choices):
            return augmented(bank, index, choices)

        ways = [
            tf.function(change, jit_compile=jit, autograph=False, input_signature=signature)
            for jit in (False, True)
        ]
    for way in ways:
        for size in (len(index), 7):  # the last batch of an epoch is smaller
            rows = {name: ops.convert_to_tensor(each[:size]) for name, each in choices.items()}
            compiled = way(bank.value, ops.convert_to_tensor(index[:size]), rows)
            np.testing.assert_array_equal(
                ops.convert_to_numpy(compiled), found[text][:size], err_msg=text
            )
np.savez(sys.argv[3], **found)
'''


# each is compiled in six ways on both back ends: the others with --slow
IN_EVERY_RUN = {"none", "rotation", "mixup", COMBINED[-1]}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def by_backend(request, tmp_path_factory):
    slow = request.config.getoption("--slow")
    texts = [text for text in TEXTS if slow or text in IN_EVERY_RUN]
    folder = tmp_path_factory.mktemp("augment")
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "index.npy", INDEX)
    found = {}
    for backend in ("tensorflow", "jax"):
        pytest.importorskip(backend)
        arguments = [folder / "images.npy", folder / "index.npy", folder / f"{backend}.npz", *texts]
        environment = os.environ | {
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_PLATFORMS": "cpu",
        }
        done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, arguments)], env=environment,
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        found[backend] = dict(np.load(folder / f"{backend}.npz"))
    return found


@pytest.mark.parametrize(
    "text",
    [text if text in IN_EVERY_RUN else pytest.param(text, marks=SLOW) for text in TEXTS],
)
def test_tensorflow_and_jax_give_the_same_images_to_the_last_bit(by_backend, text):
    """Eager, compiled and compiled by XLA; batches of unknown and of other size; the bank a
    variable or a tensor."""
    np.testing.assert_array_equal(by_backend["tensorflow"][text], by_backend["jax"][text])
    np.testing.assert_array_equal(by_backend["tensorflow"][text], changed(text))


@pytest.mark.parametrize(
    "text", ["rotation=180", "zoom=0.9+translate=1", "rotation=45+zoom=0.5+translate=0.5+shift=27"]
)
def test_resampling_agrees_with_scipy_for_wide_ranges(text):
    """Places are rounded to 1/128 of a pixel: on noise, the worst case, that may cost a few gray
    levels, on average less than one."""
    from scipy import ndimage

    matrix = draw_augmentation(text, INDEX, np.random.default_rng(0))["matrix"].astype(float)
    for image, (a, b, c, d, e, f), ours in zip(IMAGES[INDEX], matrix, changed(text)):
        wanted = ndimage.affine_transform(
            image[..., 0].astype(float), [[e, d], [b, a]], [f, c], order=1, mode="grid-constant"
        )
        difference = np.abs(ours[..., 0] - wanted)
        assert difference.max() < 5 and difference.mean() < 1
