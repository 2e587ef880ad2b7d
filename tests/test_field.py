"""Receptive fields on graphs: brute force by sets of pixels, a gradient, published figures, and
rules that are wrong on purpose."""
import dataclasses
import random
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from fashion_nb.analysis import axis as axis_room
from fashion_nb.analysis import field as field_room
from fashion_nb.analysis import field_walk as field_walk_room
from fashion_nb.analysis.axis import FieldError
from fashion_nb.analysis.effective_field import plot_field
from fashion_nb.analysis.field import receptive_field
from fashion_nb.analysis.field_walk import known_layers, register_field

# Brute force along one axis: the set of pixels that reaches each unit, by every path, and whether
# padding cuts it anywhere.

class Axis:
    """Units of one tensor: for each the set of pixels; `cut` where a tap fell on padding anywhere
    below."""

    def __init__(self, units, cut):
        self.units, self.cut = units, cut


def window(axis, kernel, stride, dilation, padding):
    reach, count = (kernel - 1) * dilation + 1, len(axis.units)
    if padding == "valid":
        total, starts = 0, list(range(0, count - reach + 1, stride))
    elif padding == "causal":
        total, starts = 2 * (reach - 1), list(range(0, count, stride))
    else:
        total, starts = max(reach - (count % stride or stride), 0), list(range(0, count, stride))
    taps = [[start - total // 2 + tap * dilation for tap in range(kernel)] for start in starts]
    return read(axis, taps)


def read(axis, taps):
    "New units that read lists of units; those outside are padding."
    units, cut = [], []
    for wanted in taps:
        inside = [tap for tap in wanted if 0 <= tap < len(axis.units)]
        units.append(set().union(*(axis.units[tap] for tap in inside)))
        cut.append(len(inside) < len(wanted) or any(axis.cut[tap] for tap in inside))
    return Axis(units, cut)


def transposed(axis, kernel, stride, padding):
    "By its definition: unit i writes to stride * i + tap, and the outcome is cropped."
    count = len(axis.units)
    full = (count - 1) * stride + kernel
    size = count * stride if padding == "same" else count * stride + max(kernel - stride, 0)
    front = max(full - size, 0) // 2 if padding == "same" else 0
    taps = [[] for _ in range(size)]
    for unit in range(-kernel, count + kernel):  # those outside are padding
        for tap in range(kernel):
            if 0 <= unit * stride + tap - front < size:
                taps[unit * stride + tap - front].append(unit)
    return read(axis, taps)


def merged(first, second):
    units = [one | other for one, other in zip(first.units, second.units, strict=True)]
    return Axis(units, [one or other for one, other in zip(first.cut, second.cut)])


def random_step(chance, axis):
    """A random layer for one axis that fits: its Keras layer, and what brute force makes of it; or
    None."""
    from keras import layers

    count = len(axis.units)
    kernel, stride = chance.randint(1, 5), chance.choice([1, 1, 2, 3])
    padding = chance.choice(["valid", "same"])
    kind = chance.choice(["conv", "conv", "dilated", "causal", "separable", "pool", "up",
        "transposed", "pad", "crop", "relu", "slice"])
    if kind == "conv" and (padding == "same" or kernel <= count):
        return layers.Conv1D(1, kernel, strides=stride, padding=padding), window(
            axis, kernel, stride, 1, padding
        )
    if kind == "separable" and kernel <= count:
        return layers.SeparableConv1D(1, kernel, strides=stride), window(
            axis, kernel, stride, 1, "valid"
        )
    if kind == "dilated" and (kernel - 1) * 2 + 1 <= count:
        return layers.Conv1D(1, kernel, dilation_rate=2, padding=padding), window(
            axis, kernel, 1, 2, padding
        )
    if kind == "causal":
        return layers.Conv1D(1, kernel, strides=stride, padding="causal"), window(
            axis, kernel, stride, 1, "causal"
        )
    if kind == "pool" and (padding == "same" or kernel <= count):
        pool = chance.choice([layers.MaxPooling1D, layers.AveragePooling1D])
        return pool(kernel, strides=stride, padding=padding), window(
            axis, kernel, stride, 1, padding
        )
    if kind == "up" and count < 60:
        taps = [[unit] for unit in range(count) for _ in range(stride)]
        return layers.UpSampling1D(stride), read(axis, taps)
    if kind == "transposed" and count < 60:
        return layers.Conv1DTranspose(1, kernel, strides=stride, padding=padding), transposed(
            axis, kernel, stride, padding
        )
    if kind == "pad":
        front, back = chance.randint(0, 3), chance.randint(0, 3)
        return layers.ZeroPadding1D((front, back)), read(
            axis, [[tap] for tap in range(-front, count + back)]
        )
    if kind == "crop" and count > 8:
        front, back = chance.randint(0, 3), chance.randint(0, 3)
        return layers.Cropping1D((front, back)), read(
            axis, [[tap] for tap in range(front, count - back)]
        )
    if kind == "relu":
        return layers.ReLU(), axis
    if kind == "slice" and count > 8:
        start, step = chance.randint(0, 3), chance.randint(1, 2)
        from keras.src.ops.numpy import GetItem

        key = (slice(None), slice(start, None, step))
        return (lambda tensor: GetItem()(tensor, key)), read(
            axis, [[tap] for tap in range(start, count, step)]
        )
    return None


def random_graph(chance, steps=12):
    """A random net with branches on one axis, and brute force's units for each of its tensors, by
    the call's place."""
    import keras
    from keras import layers

    side = chance.randint(8, 50)
    image = keras.Input((side, 1))
    nodes = [(image, Axis([{pixel} for pixel in range(side)], [False] * side))]
    expected = []
    for _ in range(steps):
        tensor, axis = chance.choice(nodes[-4:])
        partners = [
            node
            for node in nodes
            if len(node[1].units) == len(axis.units) and node[0] is not tensor
        ]
        if partners and chance.random() < 0.5:
            other, other_axis = chance.choice(partners)
            kind = chance.choice([layers.Add, layers.Multiply, layers.Maximum, layers.Concatenate])
            found = merged(axis, other_axis)
            if kind is layers.Concatenate:
                tensor = layers.Conv1D(1, 1)(kind()([tensor, other]))
                expected.append(found)
            else:
                tensor = kind()([tensor, other])
            expected.append(found)
            nodes.append((tensor, found))
        elif step := random_step(chance, axis):
            layer, found = step
            if len(found.units) < 2:
                continue
            nodes.append((layer(tensor), found))
            expected.append(found)
    outputs = [tensor for tensor, _ in nodes[1:]]
    return (keras.Model(image, outputs), nodes) if outputs else None


def compare(report, model, nodes):
    """Each tensor's record against brute force; returns units compared, and those that no padding
    cuts."""
    from fashion_nb.analysis.graph import model_graph

    records = {
        call.outputs[0].key: record for call, record in zip(model_graph(model).calls, report.layers)
    }
    graph, compared, whole = model_graph(model), 0, 0
    for (_, axis), tensor in zip(nodes[1:], graph.outputs, strict=True):
        if tensor.producer < 0:
            continue
        record = records[tensor.key]
        assert record.positions == (len(axis.units),)
        for index, (pixels, cut) in enumerate(zip(axis.units, axis.cut)):
            first, size = record.box(index)
            if pixels:
                assert first <= min(pixels) and max(pixels) <= first + size - 1, record
                compared += 1
            if not cut:
                seen = (min(pixels), max(pixels) - min(pixels) + 1) if pixels else (first, 0)
                assert (first, size) == seen, (record, index)
                whole += 1
        assert record.smallest <= record.size and record.largest <= record.size
    return compared, whole


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs_against_brute_force(seed):
    chance, compared, whole, graphs = random.Random(seed), 0, 0, 0
    for _ in range(25):
        if built := random_graph(chance):
            model, nodes = built
            one, other = compare(receptive_field(model), model, nodes)
            compared, whole, graphs = compared + one, whole + other, graphs + 1
    assert graphs >= 20 and whole > 600 and compared > whole


# Rules that are wrong on purpose: brute force must notice each of them.

def shifted_start(function, by=1):
    "The same step, its outcome one pixel too far on."
    def wrong(sight, *arguments):
        found = function(sight, *arguments)
        return dataclasses.replace(found, first=found.first + by, last=found.last + by)
    return wrong


def one_tap_less(sight, kernel_size, *others, right=axis_room._convolved):
    return right(sight, max(kernel_size - 1, 1), *others)


def own_stride_counts(
    sight, kernel_size, stride=1, dilation_rate=1, padding="valid", right=axis_room._convolved
):
    "The README's slip: the layer's own stride widens its own window."
    found = right(sight, kernel_size, stride, dilation_rate, padding)
    return dataclasses.replace(
        found, last=found.last + int((kernel_size - 1) * (stride - 1) * sight.stride)
    )


def first_path_only(paths):
    return paths[0]


def transposed_without_gaps(
    sight, kernel_size, stride, dilation_rate, padding, count, right=axis_room._transposed
):
    return dataclasses.replace(
        right(sight, kernel_size, stride, dilation_rate, padding, count),
        stride=sight.stride * stride,
        period=1,
    )


def wrong_period(self, units):
    inside = np.clip(units, 0, len(self.first) - 1)
    return self.first[inside], self.last[inside]


MUTANTS = {
    "_convolved shifted": ("_convolved", shifted_start(axis_room._convolved)),
    "_convolved one tap less": ("_convolved", one_tap_less),
    "_convolved own stride": ("_convolved", own_stride_counts),
    "_transposed shifted": ("_transposed", shifted_start(axis_room._transposed)),
    "_transposed stride": ("_transposed", transposed_without_gaps),
    "_repeated shifted": ("_repeated", shifted_start(axis_room._repeated)),
    "_picked shifted": ("_picked", shifted_start(axis_room._picked)),
    "_joined first only": ("_joined", first_path_only),
    "padding clipped": ("Sight.at", wrong_period),
}


def some_random_graphs(count=40):
    chance = random.Random(7)
    for _ in range(count):
        if built := random_graph(chance):
            compare(receptive_field(built[0]), *built)


def strides_by_hand():
    "Brute force sees what units see; effective stride and padding are worked by hand beside it."
    import keras
    from keras import layers

    stack = [
        layers.Conv1D(1, 3, strides=3),
        layers.Conv1DTranspose(1, 3, strides=2),
        layers.UpSampling1D(4),
        layers.MaxPooling1D(2),
    ]
    report = receptive_field(keras.Sequential([keras.Input((40, 1)), *stack]))
    assert [record.stride[0] for record in report.layers] == [
        3,
        Fraction(3, 2),
        Fraction(3, 8),
        Fraction(3, 4),
    ]
    stack = [
        layers.Conv1D(1, 3, padding="same"),
        layers.MaxPooling1D(2),
        layers.Conv1D(1, 3, padding="same"),
    ]
    report = receptive_field(keras.Sequential([keras.Input((40, 1)), *stack]))
    assert [(record.size[0], record.padding[0]) for record in report.layers] == [
        (3, 1),
        (4, 1),
        (8, 3),
    ]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_brute_force_notices_a_wrong_rule(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    if name == "Sight.at":
        monkeypatch.setattr(axis_room.Sight, "at", wrong)
    else:  # in every room that looks it up
        for key, room in list(sys.modules.items()):
            if key.startswith("fashion_nb.analysis.") and hasattr(room, name):
                monkeypatch.setattr(room, name, wrong)
    with pytest.raises((AssertionError, FieldError)):
        some_random_graphs()
        strides_by_hand()


def test_no_mutant():
    some_random_graphs()
    strides_by_hand()


# Figures that others published, and all models of keras.applications

PUBLISHED = {
    "VGG16": ("block5_pool", 212, 32, 90),
    "MobileNet": ("conv_pw_13_relu", 315, 32, 126),
    "InceptionV3": ("mixed10", 1311, 32, 618),
    "ResNet50": ("conv5_block3_out", 483, 32, 239 + 2),
}
MISALIGNED = {"Xception", "NASNetMobile", "NASNetLarge"}
ALL = sorted(PUBLISHED.keys() | MISALIGNED | set("""
    ConvNeXtBase ConvNeXtLarge ConvNeXtSmall ConvNeXtTiny ConvNeXtXLarge DenseNet121
    DenseNet169 DenseNet201 EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3
    EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7 EfficientNetV2B0
    EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2L EfficientNetV2M
    EfficientNetV2S InceptionResNetV2 MobileNetV2 MobileNetV3Large MobileNetV3Small
    ResNet101 ResNet101V2 ResNet152 ResNet152V2 ResNet50V2 VGG19
""".split()))
IN_EVERY_RUN = {"MobileNet", "InceptionV3", "ResNet50", "MobileNetV3Small", "ConvNeXtTiny"}


@pytest.mark.parametrize(
    "name",
    [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.slow) for name in ALL],
)
def test_applications(name):
    "No error, the published figures, and warnings where they are due."
    import keras

    model = getattr(keras.applications, name)(weights=None)
    open_size = None in model.inputs[0].shape[1:]
    report = receptive_field(model, (224, 224, 3) if open_size else None, squeeze_excitation=False)
    assert bool(report.warnings) == (name in MISALIGNED)
    places = [record for record in report.layers if min(record.positions) > 1]
    assert all(0 < record.share <= 1 and min(record.size) >= 1 for record in places)
    if name in PUBLISHED:
        layer, *figures = PUBLISHED[name]
        assert [(getattr(report[layer], part)) for part in ("size", "stride", "padding")] == [
            (figure, figure) for figure in figures
        ]
    gated = receptive_field(model, (224, 224, 3) if open_size else None)
    larger = [one.name for one, other in zip(gated.layers, report.layers) if one.size != other.size]
    # those with squeeze-and-excitation
    assert bool(larger) == name.startswith(("EfficientNet", "MobileNetV3"))


def test_speed():
    "The time grows with the number of layers: processor time, in turns, the best of several."
    import keras
    from keras import layers

    def seconds(model):
        start = time.process_time()
        receptive_field(model)
        return time.process_time() - start

    few, many = (
        keras.Sequential([
            keras.Input((64, 64, 1)),
            *[layers.Conv2D(1, 3, padding="same") for _ in range(depth)],
        ])
        for depth in (50, 200)
    )
    short, long = map(min, zip(*[(seconds(few), seconds(many)) for _ in range(5)]))
    assert long < 12 * short  # linear would be 4, quadratic 16


# Layers one by one, by a gradient where every weight is positive and nothing cancels

def positive_gradient(model, layer, unit):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 0.1))
    shape = (1, *model.inputs[0].shape[1:])
    return field_room.effective_field(
        model, layer, np.random.default_rng(0).random(shape) + 0.5, unit
    )


def two_dimensional():
    from keras import layers

    return {
        "rectangle": layers.Conv2D(2, (2, 5), strides=(2, 1), padding="same"),
        "dilated": layers.Conv2D(2, 3, dilation_rate=(1, 3)),
        "depthwise": layers.DepthwiseConv2D((4, 1), strides=2, padding="same"),
        "separable": layers.SeparableConv2D(2, (3, 2), padding="same"),
        "transposed": layers.Conv2DTranspose(2, (3, 4), strides=2, padding="same"),
        "transposed valid": layers.Conv2DTranspose(2, (2, 5), strides=(1, 3)),
        "average pool": layers.AveragePooling2D((3, 2), strides=1, padding="same"),
        "up": layers.UpSampling2D((2, 3)),
        "up bilinear": layers.UpSampling2D(2, interpolation="bilinear"),
        "pad": layers.ZeroPadding2D(((2, 0), (1, 3))),
        "crop": layers.Cropping2D(((2, 1), (0, 3))),
        "resize": layers.Resizing(9, 31, interpolation="bilinear"),
        "resize nearest": layers.Resizing(30, 12, interpolation="nearest"),
        "adaptive": layers.AdaptiveAveragePooling2D((4, 6)) if hasattr(layers,
            "AdaptiveAveragePooling2D") else layers.ReLU(),
        "permute": layers.Permute((2, 1, 3)),
        "global": layers.GlobalAveragePooling2D(keepdims=True),
        "group norm": layers.GroupNormalization(1),
    }


@pytest.mark.parametrize("name", two_dimensional())
def test_layer_against_the_gradient(name):
    import keras
    from keras import layers

    image = keras.Input((14, 16, 2))
    tensor = layers.Conv2D(2, 3, padding="same", name="below")(image)
    tensor = two_dimensional()[name](tensor)
    model = keras.Model(image, layers.Conv2D(2, 1, name="here")(tensor))
    record = receptive_field(model)["here"]
    for unit in {
        (0, 0),
        tuple(count // 2 for count in record.positions),
        tuple(count // 3 for count in record.positions),
    }:
        seen = positive_gradient(model, "here", unit) > 0
        if name == "group norm":  # what a mean takes away may cancel
            seen = positive_gradient(model, "here", unit) != 0
        box = record.box(*unit)
        for axis, side in enumerate((14, 16)):
            first, last = max(box[axis], 0), min(box[axis] + box[2 + axis] - 1, side - 1)
            found = np.flatnonzero(seen.any(axis=1 - axis))
            if first > last:  # a unit on padding
                assert name == "pad" and not seen.any()
                break
            assert found.min() >= first and found.max() <= last, (name, unit)
            if name not in ("group norm", "up bilinear", "resize"):
                assert (found.min(), found.max()) == (first, last), (name, unit)


def test_sequences_and_volumes():
    import keras
    from keras import layers

    words = keras.Input((20,), dtype="int32")
    tensor = layers.Embedding(50, 4, name="embedding")(words)
    tensor = layers.Conv1D(4, 3, padding="causal", name="causal")(tensor)
    tensor = layers.LSTM(4, return_sequences=True, name="lstm")(tensor)
    tensor = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="both")(tensor)
    tensor = layers.MultiHeadAttention(2, 2, name="attention")(tensor, tensor)
    report = receptive_field(
        keras.Model(words, layers.Dense(1, name="last")(layers.GlobalAveragePooling1D()(tensor)))
    )
    assert report.image == (20,) and report["embedding"].size == (1,)
    assert report["causal"].box(5) == (3, 3) and report["lstm"].box(5) == (-2, 8)
    assert (
        report["both"].box(5) == report["attention"].box(5) == (-2, 22)
        and report["last"].share == 1
    )
    scan = keras.Input((8, 9, 10, 1))
    record = receptive_field(
        keras.Model(scan, layers.MaxPooling3D((1, 2, 3), name="pool")(layers.Conv3D(2, 3)(scan)))
    )["pool"]
    assert (record.size, record.stride, record.positions) == ((3, 4, 5), (1, 2, 3), (6, 3, 2))
    film = keras.Input((4, 12, 12, 1))
    inner = keras.Sequential([keras.Input((12, 12, 1)), layers.Conv2D(2, 3), layers.Conv2D(2, 3)])
    tensor = layers.TimeDistributed(inner, name="each")(film)
    report = receptive_field(
        keras.Model(
            film,
            layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True, name="lstm")(tensor),
        )
    )
    assert report["each"].size == (1, 5, 5) and report["lstm"].size == (
        4,
        5 + 2 + 3 * 2,
        5 + 2 + 3 * 2,
    )


def test_channels_first_is_the_same():
    import keras
    from keras import layers

    def net(data_format):
        shape = (3, 20, 24) if data_format == "channels_first" else (20, 24, 3)
        stack = [
            layers.Conv2D(4, (3, 5), strides=2, data_format=data_format),
            layers.MaxPooling2D(2, data_format=data_format),
            layers.ZeroPadding2D(1, data_format=data_format),
            layers.GlobalAveragePooling2D(data_format=data_format),
        ]
        return receptive_field(keras.Sequential([keras.Input(shape), *stack]))

    for one, other in zip(net("channels_first").layers, net("channels_last").layers):
        assert (
            one.size == other.size
            and one.padding == other.padding
            and one.positions == other.positions
        )


def test_nested_and_shared_layers():
    import keras
    from keras import layers

    image = keras.Input((20, 20, 2))
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    inner = keras.Sequential(
        [keras.Input((20, 20, 2)), layers.Conv2D(2, 5, padding="same", name="five")], name="inner"
    )
    report = receptive_field(keras.Model(image, inner(shared(shared(inner(image))))))
    assert [record.name.split("/")[0] for record in report.layers] == [
        "inner",
        "shared",
        "shared#2",
        "inner#2",
    ]
    assert [record.size[0] for record in report.layers] == [5, 7, 9, 13]


def test_several_inputs():
    import keras
    from keras import layers

    image, other = keras.Input((12, 12, 1)), keras.Input((12, 12, 1))
    one, two = layers.Conv2D(2, 3, padding="same", name="one")(image), layers.Conv2D(
        2, 7, padding="same", name="two"
    )(other)
    model = keras.Model([image, other], layers.Add(name="sum")([one, two]))
    first, second = receptive_field(model), receptive_field(model, source=1)
    assert (first["one"].size, first["two"].size, first["sum"].size) == ((3, 3), (0, 0), (3, 3))
    assert (second["one"].size, second["two"].size, second["sum"].size) == ((0, 0), (7, 7), (7, 7))
    with pytest.raises(FieldError, match="found source=2"):
        receptive_field(model, source=2)


def test_unknown_and_registered_layers():
    import keras
    from keras import layers

    class Shuffle(layers.Layer):
        def call(self, tensor):
            return keras.ops.convert_to_tensor(np.asarray(tensor)[:, ::-1])

        def compute_output_shape(self, shape):
            return shape

    image = keras.Input((12, 10, 1))
    tensor = layers.Conv2D(2, 3, padding="same", name="conv")(Shuffle(name="shuffle")(image))
    model = keras.Model(image, tensor, name="net")
    with pytest.raises(
        FieldError,
        match=(
            "layer 'shuffle' of model 'net' is a Shuffle that has no rule.*from fashion_nb import"
            " register_field"
        ),
    ):
        receptive_field(model)
    bound = receptive_field(model, strict=False)
    assert (
        bound["conv"].size == (12, 10)
        and not bound["conv"].exact
        and "upper bounds" in bound.warnings[0]
    )
    assert bound.warnings[0].endswith("(from fashion_nb import register_field)")
    assert "≤ 12 × 10" in repr(bound)
    try:
        register_field(Shuffle, layers.ReLU)
        assert receptive_field(model)["conv"].size == (3, 3)

        @register_field(Shuffle)
        def flipped(call, fields):
            return fields[0].changed({1: (axis_room._picked, 11, -1, 12)})

        assert receptive_field(model)["shuffle"].box(2, 3) == (9, 3, 1, 1)
        register_field(Shuffle, lambda call, fields: fields[0].arranged([0, 2, 1, 3]))
        with pytest.raises(FieldError, match="the rule for layer 'shuffle' gives the shape"):
            receptive_field(model)
    finally:
        field_walk_room._REGISTERED.clear()


def test_open_sizes_and_bad_input():
    import keras
    from keras import layers

    model = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(2, 3, strides=2, padding="same", name="conv")]
    )
    assert receptive_field(model, (28, 28, 3))["conv"].padding == (0, 0)
    assert receptive_field(model, (27, 27, 3))["conv"].padding == (1, 1)
    for wrong in (model, "stride_1", keras.Sequential([layers.Conv2D(2, 3)])):
        with pytest.raises(FieldError):
            receptive_field(wrong)
    report = receptive_field(model, (27, 27, 3))
    with pytest.raises(FieldError, match="expected one within"):
        report["conv"].box(14, 0)
    with pytest.raises(FieldError, match="27"):
        plot_field(report, "conv", np.zeros((28, 28)))


def test_report_is_plain_data():
    import json

    import keras
    from keras import layers

    stack = [layers.Conv2D(2, 3, name="conv"), layers.UpSampling2D(3, name="up")]
    report = receptive_field(keras.Sequential([keras.Input((9, 9, 1)), *stack]))
    assert report["up"].stride == (Fraction(1, 3),) * 2 and "1/3 × 1/3" in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["stride"] == [1 / 3] * 2
    assert sum(len(kinds) for kinds in known_layers().values()) > 150


def test_an_einstein_sum_without_an_arrow_is_the_one_with_it():
    import keras
    from keras import layers, ops

    image = keras.Input((9, 8, 3))
    tensor, kernel = layers.Conv2D(4, 3, padding="same")(image), np.ones((4, 5), "float32")
    ends = [
        keras.Model(image, ops.einsum(equation, tensor, kernel))
        for equation in ("bhwx,xz", "bhwx,xz->bhwz", "...x,xz->...z")
    ]
    found = [receptive_field(model).layers[-1] for model in ends]
    assert [(end.size, end.positions) for end in found] == [((3, 3), (9, 8))] * 3
