"""Fields behind operations that move pixels about: tokens, windows, shuffles, shifts and joins.

The judge is brute force: a net of sums and averages with positive weights gets one image for each
pixel, on which only that pixel is lit. An element sees the pixels that light it up.
"""
import random
from math import prod

import keras
import numpy as np
import pytest
from keras import layers, ops

from fashion_nb.analysis.axis import FieldError, Paths, Sight, TensorField
from fashion_nb.analysis.field import receptive_field
from fashion_nb.analysis.field_walk import _walk
from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.grid import as_grid

HEIGHT, WIDTH = 8, 6


class Fresh:
    "Positive weights without biases, for any layer."

    options = {"kernel_initializer": "ones", "use_bias": False}
    depthwise = {"depthwise_initializer": "ones", "use_bias": False}


class Pieces:
    "A random net, one operation after another."

    def __init__(self, chance):
        self.chance = chance
        self.image = keras.Input((HEIGHT, WIDTH, chance.choice((1, 3))))
        self.tensors = [self.image]

    def grow(self):
        "One more operation, if it fits; is there one more tensor?"
        tensor = self.chance.choice(self.tensors[-3:])
        name = self.chance.choice(sorted(MOVES))
        made = MOVES[name](self.chance, tensor, self)
        if made is None or len(made.shape) > 6 or prod(size or 1 for size in made.shape) > 4000:
            return False
        self.tensors.append(made)
        return True


def axis_of(chance, tensor, low=1):
    "A dimension other than the batch."
    return chance.randrange(low, len(tensor.shape)) if len(tensor.shape) > low else None


def factor_of(chance, number):
    "A number that divides another."
    return chance.choice([one for one in range(1, number + 1) if number % one == 0])


def reshape(chance, tensor, net):
    "To any other shape."
    left, shape = prod(tensor.shape[1:]), []
    for _ in range(chance.randint(0, 3)):
        shape.append(factor_of(chance, left))
        left //= shape[-1]
    return layers.Reshape((*shape, left))(tensor)


def merge_or_split(chance, tensor, net):
    "Two neighbors melted into one, or one dimension split in two."
    shape, dim = list(tensor.shape[1:]), axis_of(chance, tensor) - 1
    if chance.random() < 0.5 and dim + 1 < len(shape):
        shape[dim : dim + 2] = [shape[dim] * shape[dim + 1]]
    else:
        part = factor_of(chance, shape[dim])
        shape[dim : dim + 1] = [shape[dim] // part, part]
    return ops.reshape(tensor, (-1, *shape)) if len(shape) < 6 else None


def transpose(chance, tensor, net):
    order = list(range(1, len(tensor.shape)))
    chance.shuffle(order)
    return ops.transpose(tensor, (0, *order))


def swap(chance, tensor, net):
    return ops.swapaxes(tensor, axis_of(chance, tensor), axis_of(chance, tensor))


def move(chance, tensor, net):
    return ops.moveaxis(tensor, axis_of(chance, tensor), axis_of(chance, tensor))


def roll(chance, tensor, net):
    if chance.random() < 0.3 and len(tensor.shape) > 2:
        return ops.roll(tensor, (chance.randint(-3, 3), chance.randint(1, 2)), axis=(1, 2))
    return ops.roll(tensor, chance.randint(-3, 3), axis=axis_of(chance, tensor))


def flip(chance, tensor, net):
    return ops.flip(tensor, axis=axis_of(chance, tensor))


def piece(chance, tensor, net):
    "A slice with a step, which may be negative."
    key, dim = [slice(None)] * len(tensor.shape), axis_of(chance, tensor)
    start = chance.randrange(tensor.shape[dim])
    key[dim] = chance.choice((
        slice(start, None), slice(None, start + 1), slice(None, None, 2), slice(None, None, -1),
        start,
    ))  # fmt: skip
    return tensor[tuple(key)] if len(tensor.shape) > 2 or isinstance(key[dim], slice) else None


def take(chance, tensor, net):
    dim = axis_of(chance, tensor)
    units = [chance.randrange(tensor.shape[dim]) for _ in range(chance.randint(1, 4))]
    return ops.take(tensor, np.array(units), axis=dim)


def split(chance, tensor, net):
    dim = axis_of(chance, tensor)
    parts = factor_of(chance, tensor.shape[dim])
    return chance.choice(ops.split(tensor, parts, axis=dim)) if parts > 1 else None


def unstack(chance, tensor, net):
    dim = axis_of(chance, tensor)
    return chance.choice(ops.unstack(tensor, axis=dim)) if len(tensor.shape) > 2 else None


def pad(chance, tensor, net):
    pairs = [(0, 0)] + [(chance.randint(0, 1), chance.randint(0, 2)) for _ in tensor.shape[1:]]
    modes = ["constant"]
    if all(size > 2 for size in tensor.shape[1:]):
        modes += ["reflect", "symmetric"]
    return ops.pad(tensor, pairs, mode=chance.choice(modes))


def repeat(chance, tensor, net):
    dim = axis_of(chance, tensor)
    return ops.repeat(tensor, 2, axis=dim)


def tile(chance, tensor, net):
    return ops.tile(tensor, [1] + [chance.choice((1, 1, 2)) for _ in tensor.shape[1:]])


def stack(chance, tensor, net):
    others = [one for one in net.tensors if one.shape == tensor.shape]
    return ops.stack([tensor, chance.choice(others)], axis=chance.randint(1, len(tensor.shape)))


def join(chance, tensor, net):
    "Along any dimension, with a tensor that fits."
    dim = axis_of(chance, tensor)
    others = [
        one
        for one in net.tensors
        if len(one.shape) == len(tensor.shape)
        and all(a == b or d == dim for d, (a, b) in enumerate(zip(one.shape, tensor.shape)))
    ]
    return layers.Concatenate(axis=dim)([tensor, chance.choice(others)])


def add(chance, tensor, net):
    others = [one for one in net.tensors if one.shape == tensor.shape]
    return ops.add(tensor, chance.choice(others))


def to_depth(chance, tensor, net):
    fits = len(tensor.shape) == 4 and tensor.shape[1] % 2 == tensor.shape[2] % 2 == 0
    return ops.space_to_depth(tensor, 2) if fits else None


def to_space(chance, tensor, net):
    fits = len(tensor.shape) == 4 and tensor.shape[3] % 4 == 0
    return ops.depth_to_space(tensor, 2) if fits else None


def patches(chance, tensor, net):
    if len(tensor.shape) != 4 or min(tensor.shape[1:3]) < 3:
        return None
    strides, padding = chance.choice((1, 2, 3)), chance.choice(("valid", "same"))
    return ops.image.extract_patches(tensor, (2, 2), strides=strides, padding=padding)


def windows(chance, tensor, net):
    "Windows of 2 x 2 positions, put into the batch, as in Swin."
    if len(tensor.shape) != 4 or tensor.shape[0] is not None:
        return None
    _, height, width, channels = tensor.shape
    if height % 2 or width % 2:
        return None
    parts = ops.reshape(tensor, (-1, height // 2, 2, width // 2, 2, channels))
    parts = ops.transpose(parts, (0, 1, 3, 2, 4, 5))
    return ops.reshape(parts, (-1, (height // 2) * (width // 2), 4, channels))


def conv(chance, tensor, net):
    if len(tensor.shape) != 4 or min(tensor.shape[1:3]) < 3:
        return None
    padding, strides = chance.choice(("same", "valid")), chance.choice((1, 1, 2))
    groups = factor_of(chance, tensor.shape[3])
    return layers.Conv2D(
        2 * groups, 3, strides=strides, padding=padding, groups=groups, **Fresh.options
    )(tensor)


def depthwise(chance, tensor, net):
    if len(tensor.shape) != 4 or min(tensor.shape[1:3]) < 3:
        return None
    return layers.DepthwiseConv2D(
        3, padding=chance.choice(("same", "valid")), depth_multiplier=chance.choice((1, 2)),
        **Fresh.depthwise,
    )(tensor)  # fmt: skip


def conv_of_a_sequence(chance, tensor, net):
    if len(tensor.shape) != 3 or tensor.shape[1] < 4:
        return None
    return layers.Conv1D(3, 2, dilation_rate=chance.choice((1, 2)), **Fresh.options)(tensor)


def pool(chance, tensor, net):
    fits = len(tensor.shape) == 4 and min(tensor.shape[1:3]) > 1
    layer = layers.AveragePooling2D(2, padding=chance.choice(("same", "valid")))
    return layer(tensor) if fits else None


def dense(chance, tensor, net):
    return layers.Dense(chance.randint(1, 4), **Fresh.options)(tensor)


def mean(chance, tensor, net):
    if len(tensor.shape) < 3:
        return None
    return ops.mean(tensor, axis=axis_of(chance, tensor), keepdims=chance.random() < 0.5)


def running(chance, tensor, net):
    return ops.cumsum(tensor, axis=axis_of(chance, tensor))


def flatten(chance, tensor, net):
    return layers.Flatten()(tensor)


def up(chance, tensor, net):
    return layers.UpSampling2D(2)(tensor) if len(tensor.shape) == 4 else None


def einsum(chance, tensor, net):
    "A sum over one dimension with a weight, along it."
    letters = "bcdefgh"[: len(tensor.shape)]
    dim = axis_of(chance, tensor)
    weight = np.ones((tensor.shape[dim], 2), "float32")
    made = letters.replace(letters[dim], "z")
    return ops.einsum(f"{letters},{letters[dim]}z->{made}", tensor, weight)


def attend(chance, tensor, net):
    "Each along one dimension hears from all, and keeps its own."
    return tensor + ops.mean(tensor, axis=axis_of(chance, tensor), keepdims=True)


def permute(chance, tensor, net):
    order = list(range(1, len(tensor.shape)))
    chance.shuffle(order)
    return layers.Permute(tuple(order))(tensor)


def crop(chance, tensor, net):
    fits = len(tensor.shape) == 4 and min(tensor.shape[1:3]) > 3
    return layers.Cropping2D(((1, 0), (chance.randint(0, 1), 2)))(tensor) if fits else None


def border(chance, tensor, net):
    return layers.ZeroPadding2D(((1, 2), (0, 1)))(tensor) if len(tensor.shape) == 4 else None


MOVES = {
    function.__name__: function
    for function in (
        reshape, merge_or_split, transpose, swap, move, roll, flip, piece, take, split, unstack,
        pad, repeat, tile, stack, join, add, to_depth, to_space, patches, conv, depthwise,
        conv_of_a_sequence, pool, dense, mean, running, flatten, up, einsum, attend,
        permute, crop, border,
    )
}  # fmt: skip


def random_net(seed, steps=8):
    "A model with all its tensors as outputs."
    net, tries = Pieces(random.Random(seed)), 0
    while len(net.tensors) <= steps and tries < 60:
        net.grow()
        tries += 1
    return keras.Model(net.image, net.tensors[1:])


def lit(model):
    "For each output: (pixels, elements), which pixel lights up which element."
    shape = model.inputs[0].shape[1:]
    images = np.zeros((HEIGHT * WIDTH, *shape), "float32")
    for pixel in range(HEIGHT * WIDTH):
        images[pixel, pixel // WIDTH, pixel % WIDTH] = 1
    made = model(images)
    made = made if isinstance(made, list) else [made]
    return [np.asarray(one).reshape(len(images), -1) > 1e-12 for one in made]


def boxes(seen):
    "First and last row and column that each element sees, from (pixels, elements)."
    seen = seen.reshape(HEIGHT, WIDTH, -1)
    found = []
    for axis, size in ((1, HEIGHT), (0, WIDTH)):
        along = seen.any(axis=axis)
        first = np.where(along.any(0), along.argmax(0), 99)
        last = np.where(along.any(0), size - 1 - along[::-1].argmax(0), -99)
        found.append((first, last))
    return found


def compare(model):
    """Every element of every tensor whose field is exact, against brute force; how many elements
    were compared, and how many of them see less than everything."""
    graph = model_graph(model)
    state, compared, partly = field_state(graph), 0, 0
    for tensor, seen in zip(graph.outputs, lit(model)):
        field, where = state[tensor.key], graph.calls[tensor.producer].name
        if field is None or not field.exact:
            assert field is not None or not seen.any()
            continue
        taken = union_over(field, tensor.shape, boxes(seen))
        ours = [[row[0].first, row[0].last] for row in as_grid(field).spots]
        ours = [[np.broadcast_to(end, taken[0][0].shape) for end in ends] for ends in ours]
        # what lies on padding along one axis sees nothing at all
        nothing = np.zeros(taken[0][0].shape, bool)
        for (first, last), size in zip(ours, (HEIGHT, WIDTH)):
            nothing |= (first > last) | (last < 0) | (first >= size)
        # over the border a field goes on over padding, of which brute force knows nothing
        check = ~nothing
        for (first, last), size in zip(ours, (HEIGHT, WIDTH)):
            check &= (first >= 0) & (last < size)
        for (first, last), (begin, end), size in zip(ours, taken, (HEIGHT, WIDTH)):
            assert (begin > end)[nothing].all(), where
            assert (first[check] == begin[check]).all(), where
            assert (last[check] == end[check]).all(), where
            compared += int(check.sum())
            partly += int((check & (end - begin + 1 < size)).sum())
    return compared, partly


def field_state(graph):
    "The fields of all tensors, by their keys."
    sights = [Sight(np.arange(side), np.arange(side), side=side) for side in (HEIGHT, WIDTH)]
    start = TensorField((None, 0, 1, None), tuple(Paths(one, one, one) for one in sights))
    state = {(-1, 0): start}
    for _ in _walk(graph, state, True, True):
        pass
    return state


def union_over(field, shape, found):
    "What brute force saw, taken together along dimensions that the field leaves out."
    grid = as_grid(field)
    kept = [dim for dim, one in enumerate(grid.dims) if one is not None]
    lost = tuple(dim for dim in range(len(shape)) if dim not in kept)
    whole = ((first.reshape(shape), last.reshape(shape)) for first, last in found)
    return [
        (first.min(lost, keepdims=True), last.max(lost, keepdims=True)) for first, last in whole
    ]


@pytest.mark.parametrize("seed", range(60))
def test_random_nets_against_brute_force(seed):
    compare(random_net(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_two_thousand_random_nets_against_brute_force(first):
    compared = partly = 0
    for seed in range(first, first + 250):
        more = compare(random_net(10_000 + seed, steps=10))
        compared, partly = compared + more[0], partly + more[1]
    assert compared > 100_000 and partly > compared / 4


def field_of(function, *shape, layer=-1):
    "The record of one call in a model of these functions."
    image = keras.Input(shape)
    return receptive_field(keras.Model(image, function(image))).layers[layer]


def pixel_shuffle(x):
    "As it is written without `depth_to_space`."
    x = ops.reshape(x, (-1, 6, 6, 2, 2, 3))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 12, 12, 3))


def test_pixel_shuffle():
    def net(x):
        return pixel_shuffle(layers.Conv2D(12, 3, padding="same")(x))

    row = field_of(net, 6, 6, 5)
    assert (row.positions, row.size, row.stride, row.exact) == ((12, 12), (3, 3), (0.5, 0.5), True)
    assert row.box(0, 0) == row.box(1, 1) == (-1, -1, 3, 3) and row.box(2, 3) == (0, 0, 3, 3)
    conv = layers.Conv2D(12, 3, padding="same")
    same = field_of(lambda x: ops.depth_to_space(conv(x), 2), 6, 6, 5)
    assert (same.positions, same.size, same.stride) == (row.positions, row.size, row.stride)


def test_a_shift():
    row = field_of(lambda x: ops.roll(x, 1, axis=1), 12, 12, 3)
    assert (row.positions, row.size, row.stride, row.exact) == ((12, 12), (1, 1), (1, 1), True)
    assert row.box(0, 0) == (11, 0, 1, 1) and row.box(3, 3) == (2, 3, 1, 1)
    # behind a convolution, the units at the seam see both ends
    row = field_of(lambda x: layers.Conv2D(2, 3)(ops.roll(x, 1, axis=1)), 12, 12, 3)
    assert row.box(0, 5) == (0, 5, 12, 3) and row.box(4, 5) == (3, 5, 3, 3)


def test_patches_to_tokens_and_back():
    def tokens(x):
        x = layers.Conv2D(8, 4, strides=4)(x)
        return ops.reshape(x, (-1, 9, 8))

    row = field_of(tokens, 12, 12, 3)
    assert (row.positions, row.size, row.stride, row.exact) == ((3, 3), (4, 4), (4, 4), True)
    row = field_of(lambda x: ops.reshape(tokens(x), (-1, 3, 3, 8)), 12, 12, 3)
    assert (row.positions, row.size, row.stride, row.exact) == ((3, 3), (4, 4), (4, 4), True)
    assert row.box(1, 2) == (4, 8, 4, 4)

    def attended(x):
        x = tokens(x)
        x = layers.MultiHeadAttention(2, 4)(x, x)
        return ops.reshape(x, (-1, 3, 3, 8))

    row = field_of(attended, 12, 12, 3)
    assert (row.positions, row.size, row.exact) == ((3, 3), (12, 12), True)

    def with_a_class_token(x):
        x = tokens(x)
        return ops.concatenate([ops.mean(x, axis=1, keepdims=True), x], axis=1)[:, 1:]

    row = field_of(lambda x: ops.reshape(with_a_class_token(x), (-1, 3, 3, 8)), 12, 12, 3)
    assert (row.positions, row.size, row.stride) == ((3, 3), (4, 4), (4, 4))


def swin(x, shift):
    "Attention in windows of 4 x 4, shifted."
    _, side, _, channels = x.shape
    many = side // 4
    x = ops.roll(x, (-shift, -shift), axis=(1, 2))
    x = ops.transpose(ops.reshape(x, (-1, many, 4, many, 4, channels)), (0, 1, 3, 2, 4, 5))
    x = ops.reshape(x, (-1, 16, channels))
    x = layers.MultiHeadAttention(1, channels)(x, x)
    x = ops.transpose(ops.reshape(x, (-1, many, many, 4, 4, channels)), (0, 1, 3, 2, 4, 5))
    return ops.roll(ops.reshape(x, (-1, side, side, channels)), (shift, shift), axis=(1, 2))


def test_windows():
    row = field_of(lambda x: swin(x, 0), 16, 16, 3)
    assert (row.positions, row.size, row.exact) == ((16, 16), (4, 4), True)
    assert row.box(5, 9) == (4, 8, 4, 4)
    row = field_of(lambda x: swin(swin(x, 0), 2), 16, 16, 3)
    assert row.exact and row.box(7, 7) == (4, 4, 8, 8)  # rows 6 to 9, in windows 4 to 7 and 8 to 11


def test_channels_that_see_different_things():
    def two(x):
        return layers.Concatenate()([x, layers.Conv2D(3, 5, padding="same")(x)])

    assert field_of(two, 12, 12, 3).size == (5, 5)
    assert field_of(lambda x: two(x)[..., :3], 12, 12, 3).size == (1, 1)
    assert field_of(lambda x: -ops.split(two(x), 2, axis=-1)[1], 12, 12, 3).size == (5, 5)

    def shuffled(x):  # as in ShuffleNet
        x = ops.reshape(two(x), (-1, 12, 12, 2, 3))
        return ops.reshape(ops.swapaxes(x, 3, 4), (-1, 12, 12, 6))

    assert field_of(shuffled, 12, 12, 3).size == (5, 5)
    assert field_of(lambda x: shuffled(x)[..., 2:3], 12, 12, 3).size == (1, 1)
    assert field_of(lambda x: shuffled(x)[..., 3:4], 12, 12, 3).size == (5, 5)
    pairs = layers.Conv2D(6, 3, groups=3, padding="same")
    assert field_of(lambda x: pairs(two(x))[..., :2], 12, 12, 3).size == (3, 3)
    assert field_of(lambda x: layers.Conv2D(6, 3, padding="same")(two(x)), 12, 12, 3).size == (7, 7)


def test_positions_are_those_of_all_channels_together():
    def two(x):
        return layers.Concatenate()([x, layers.Conv2D(3, 5, padding="same")(x)])

    depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2)
    row = field_of(lambda x: depthwise(two(x)), 12, 12, 3)
    assert (row.positions, row.size, row.stride) == ((10, 10), (7, 7), (1, 1))
    row = field_of(lambda x: layers.AveragePooling2D(2)(two(x)[..., 2:4]), 12, 12, 3)
    assert (row.positions, row.size, row.stride) == ((6, 6), (6, 6), (2, 2))
    row = field_of(lambda x: layers.Conv2D(4, 3, groups=2)(two(x)[..., ::-1]), 12, 12, 3)
    assert (row.positions, row.size, row.stride) == ((10, 10), (7, 7), (1, 1))


def test_what_cannot_be_followed_is_said():
    image = keras.Input((8, 8, 3))
    report = receptive_field(keras.Model(image, layers.Conv2D(2, 3)(ops.sort(image, axis=1))))
    assert [row.exact for row in report.layers] == [False, False]
    (warning,) = report.warnings
    assert "'sort'" in warning and "upper bounds" in warning
    assert report.layers[0].size[0] == 8
    with pytest.raises(FieldError, match="take_along_axis"):
        index = ops.cast(image, "int32")
        receptive_field(keras.Model(image, ops.take_along_axis(image, index, axis=1)))


def test_cropped_pixels_are_not_seen_again():
    row = field_of(lambda x: layers.Conv2D(1, 3, padding="same")(x[:, 3:]), 12, 12, 1)
    assert row.box(0, 5) == (3, 5 - 1, 2, 3) and row.box(1, 5) == (3, 4, 3, 3)
