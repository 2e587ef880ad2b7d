"""Receptive fields against brute force on random networks, and the counters where a chapter would
be too long."""
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fashion_nb.analysis.axis import AxisField, FieldError, after_window
from fashion_nb.analysis.effective_field import plot_field
from fashion_nb.analysis.field import receptive_field
from fashion_nb.checks.gradient import field_box, gradient_image, measured_field
from fashion_nb.checks.keras_flops import CheckError, keras_flops_count

# Brute force along one axis: which pixels reach each unit, by sets, with TensorFlow's other way to
# write 'same'.

def padding_in_front(positions, kernel, stride, dilation, padding):
    """Zeros in front of one axis, and windows, as TensorFlow's guide writes them (by the remainder
    of n / stride)."""
    reach = (kernel - 1) * dilation + 1
    if padding == "valid":
        return 0, len(range(0, positions - reach + 1, stride))
    total = max(reach - (positions % stride or stride), 0)
    return total // 2, len(range(0, positions, stride))


def brute_force(side, windows):
    """For each unit of the last layer: the set of pixels that reach it, and whether any tap fell on
    padding on the way."""
    units = [({pixel}, False) for pixel in range(side)]
    for kernel, stride, dilation, padding in windows:
        front, count = padding_in_front(len(units), kernel, stride, dilation, padding)
        above = []
        for start in range(-front, -front + count * stride, stride):
            taps = range(start, start + kernel * dilation, dilation)
            inside = [units[tap] for tap in taps if 0 <= tap < len(units)]
            cut = len(inside) < kernel or any(below_cut for _, below_cut in inside)
            above.append((set().union(*(pixels for pixels, _ in inside)), cut))
        units = above
    return units


def random_windows(chance, side, layers=8):
    "A random chain of windows that fits into `side` pixels."
    windows, positions = [], side
    for _ in range(chance.randint(1, layers)):
        kernel, padding = chance.randint(1, 7), chance.choice(["valid", "same"])
        stride, dilation = chance.choice([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
        if (kernel - 1) * dilation + 1 > positions:
            continue
        windows.append((kernel, stride, dilation, padding))
        positions = padding_in_front(positions, *windows[-1])[1]
    return windows


def test_recurrence_against_brute_force():
    chance, whole, checked = random.Random(0), 0, 0
    for _ in range(600):
        side = chance.randint(5, 120)
        windows = random_windows(chance, side)
        field = AxisField(side)
        for kernel, stride, dilation, padding in windows:
            field = after_window(field, kernel, stride, dilation, padding)
        units = brute_force(side, windows)
        assert field.positions == len(units), windows
        for index, (pixels, cut) in enumerate(units):
            first, last = field.seen(index)
            assert not pixels or (first <= min(pixels) and max(pixels) <= last), (side, windows)
            if not cut:
                assert (min(pixels), max(pixels)) == (first, last), (side, windows)
                whole += 1
            checked += 1
        assert field.center == sum(field.seen(0)) / 2
    assert whole > 5_000 and checked > 10_000


def random_layer(chance, sides, index):
    "A random Keras layer that fits on `sides`."
    from keras import layers

    kind = chance.choice(["conv", "conv", "depthwise", "max", "average", "free"])
    window = tuple(min(chance.randint(1, 4), side) for side in sides)
    stride = chance.choice([1, 1, 2])
    options = {"padding": chance.choice(["valid", "same"]), "name": f"layer{index}"}
    if kind in ("max", "average"):
        kinds = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
        return kinds[kind](window, strides=(stride, chance.choice([1, 2])), **options)
    if kind == "free":
        return chance.choice([layers.ReLU, layers.BatchNormalization, layers.Identity])(
            name=f"layer{index}"
        )
    dilation = (
        chance.choice([1, 2])
        if stride == 1 and all((k - 1) * 2 < side for k, side in zip(window, sides))
        else 1
    )
    options |= {"strides": stride, "dilation_rate": dilation, "activation": "relu"}
    return (
        layers.DepthwiseConv2D(window, **options)
        if kind == "depthwise"
        else layers.Conv2D(2, window, **options)
    )


@pytest.mark.parametrize("seed", range(12))
def test_report_against_the_gradient(seed):
    "Size in an image that is large enough, shapes, and place on the model's own image."
    import keras

    chance = random.Random(seed)
    shape = (None, chance.randint(30, 40), chance.randint(30, 40), 2)
    stack = [keras.Input(shape[1:])]
    for index in range(chance.randint(2, 6)):
        stack.append(random_layer(chance, shape[1:3], index))
        shape = stack[-1].compute_output_shape(shape)
    model = keras.Sequential(stack)
    for record, layer in zip(receptive_field(model).layers, model.layers):
        assert record.positions == tuple(layer.output.shape[1:3])
    assert record.size == measured_field(model, record.name)
    top, left, height, width = field_box(gradient_image(model, record.name))
    box = record.box()
    # padding is not seen
    if any(getattr(layer, "padding", "valid") == "same" for layer in model.layers):
        assert (
            box[0] <= top
            and box[1] <= left
            and top + height <= box[0] + box[2]
            and left + width <= box[1] + box[3]
        )
    else:
        assert (top, left, height, width) == box
    assert 0 < record.share <= 1


def test_measurement_leaves_the_model_alone():
    import keras
    from keras import layers

    stack = [layers.Conv2D(2, 3), layers.BatchNormalization(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((12, 12, 1)), *stack])
    model.compile(loss="mse")
    before = [weight.copy() for weight in model.get_weights()]
    # no Flatten: position by position
    assert measured_field(model, model.layers[-1].name) == (3, 3)
    assert receptive_field(model).layers[-1].size == (3, 3)
    assert all(
        np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)
    )
    assert model.compiled and [layer.trainable for layer in model.layers] == [True] * 3


def test_field_that_is_too_large_to_measure():
    import keras
    from keras import layers

    model = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.GlobalAveragePooling2D(keepdims=True, name="all")]
    )
    with pytest.raises(CheckError, match="reaches the border of every image"):
        measured_field(model, "all")


def test_gradient_without_a_fixed_size():
    import keras
    from keras import layers

    stack = [layers.Conv2D(2, 5, name="conv"), layers.GlobalMaxPooling2D(name="all")]
    model = keras.Sequential([keras.Input((None, None, 1)), *stack])
    assert measured_field(model, "conv") == (5, 5)
    for call in (lambda: measured_field(model, "all"), lambda: gradient_image(model, "conv")):
        with pytest.raises(CheckError, match="any size"):
            call()


def test_errors_name_what_was_found():
    import keras
    from keras import layers

    nested = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.Sequential([layers.Conv2D(2, 3)], name="inner")]
    )
    with pytest.raises(FieldError, match="no layer 'inner': expected one of inner/conv"):
        receptive_field(nested)["inner"]
    with pytest.raises(CheckError, match="no layer 'inner': expected one of inner/conv"):
        measured_field(nested, "inner")
    with pytest.raises(FieldError, match="does not fit into 2 positions"):
        after_window(AxisField(2), 3)
    report = receptive_field(
        keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3, name="conv")])
    )
    with pytest.raises(FieldError, match=r"\(8, 9\)"):
        plot_field(report, "conv", np.zeros((8, 9)))


# keras-flops, in other shapes than the chapters'

def test_several_inputs_and_dictionaries():
    import keras
    from keras import layers

    def model(inputs, tensors):
        return keras.Model(inputs, layers.Dense(2, use_bias=False)(layers.Concatenate()(tensors)))

    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    assert keras_flops_count(model([a, b], [a, b])) == 2 * 7 * 2
    assert keras_flops_count(model({"b": b, "a": a}, [a, b])) == 2 * 7 * 2
    only = keras.Input((3,), name="only")
    assert (
        keras_flops_count(keras.Model({"only": only}, layers.Dense(2, use_bias=False)(only)))
        == 2 * 3 * 2
    )
    pixels = keras.Input((3,), dtype="uint8")
    scaled = layers.Rescaling(1 / 255)(pixels)
    assert keras_flops_count(keras.Model(pixels, scaled)) == 2 * 3


def in_a_new_process(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_count_after_a_failed_import_and_without_chatter():
    """Whoever tried `import keras_flops` before has half of its formulas registered; and file
    descriptor 1 stays clean."""
    out = in_a_new_process("""
        import keras
        try:
            import keras_flops
        except KeyError:
            print("refused")
        from fashion_nb.checks.keras_flops import keras_flops_count
        net = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7)])
        print(keras_flops_count(net), keras_flops_count(net))
    """)
    assert out.split() == ["refused", "147", "147"]


def test_missing_packages_are_one_sentence():
    out = in_a_new_process("""
        import sys
        import keras
        from fashion_nb.checks.keras_flops import CheckError, keras_flops_count
        net = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7)])
        for missing in ("keras_flops", "tensorflow"):
            sys.modules[missing] = None
            try:
                keras_flops_count(net)
            except CheckError as error:
                print(error)
    """)
    assert out.splitlines() == [
        "keras_flops is not installed: pip install keras-flops==0.1.2",
        "keras-flops needs TensorFlow and Keras, and tensorflow is not installed",
    ]


def test_import_stays_light():
    "Neither module imports TensorFlow, Keras, pandas or matplotlib before it needs them."
    out = in_a_new_process("""
        import sys
        import fashion_nb.analysis.field, fashion_nb.checks.verify
        heavy = ["tensorflow", "keras", "pandas", "matplotlib", "seaborn"]
        heavy += ["fashion_nb.analysis.cost"]
        print([name for name in heavy if name in sys.modules])
    """)
    assert out.strip() == "[]"
