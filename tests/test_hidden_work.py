"""Work that hides: what a `call` computes of its weights and of constants, in a cell of a
user's own, in a layer inside another one, in a product of several tensors.

The judge is TensorFlow's own graph of the call, and of its gradients: the products in it, counted
from the shapes of its operations.
"""
from math import prod

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from fashion_nb.analysis.cost import CostError, model_cost
from fashion_nb.analysis.field import receptive_field
from fashion_nb.analysis.graph import model_graph

CONVOLUTIONS = {"Conv2D": 1, "Conv2DBackpropInput": 1, "Conv2DBackpropFilter": 1}


def node_macs(operation):
    "MACs of one operation of a TensorFlow graph."
    kind = operation.type
    if kind in ("MatMul", "BatchMatMulV2"):
        shape = operation.inputs[0].shape.as_list()
        adjoint = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        return prod(operation.outputs[0].shape.as_list()) * shape[-2 if adjoint else -1]
    if kind == "Conv2D":
        height, width, channels, _ = operation.inputs[1].shape.as_list()
        return prod(operation.outputs[0].shape.as_list()) * height * width * channels
    if kind == "Conv2DBackpropInput":
        height, width, channels, _ = operation.inputs[1].shape.as_list()
        return prod(operation.inputs[2].shape.as_list()) * height * width * channels
    if kind == "Conv2DBackpropFilter":
        height, width, channels, _ = operation.outputs[0].shape.as_list()
        return prod(operation.inputs[2].shape.as_list()) * height * width * channels
    if kind == "Einsum":
        letters = operation.get_attr("equation").decode().partition("->")[0].split(",")
        sizes = {}
        for part, tensor in zip(letters, operation.inputs):
            sizes |= dict(zip(part, tensor.shape.as_list()))
        made = operation.get_attr("equation").decode().partition("->")[2]
        summed = (set(letters[0]) & set(letters[-1])) - set(made)
        return prod(sizes.values()) if len(letters) == 2 and summed else 0
    assert kind not in ("BatchMatMul", "BatchMatMulV3", "Conv3D"), kind
    return 0


def graph_macs(layer, shape, training, batch=1):
    "MACs in what TensorFlow needs for the result, or for it and all gradients."

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        if not training:
            return loss
        variables = [one.value for one in layer.trainable_variables]
        return loss, [g for g in tape.gradient(loss, variables) if g is not None]

    graph = tf.function(step).get_concrete_function(tf.TensorSpec((batch, *shape))).graph
    ahead, needed = [tensor.op for tensor in graph.outputs], {}
    while ahead:
        operation = ahead.pop()
        if operation.name not in needed:
            needed[operation.name] = operation
            ahead += [tensor.op for tensor in operation.inputs]
    return sum(map(node_macs, needed.values()))


class Weights(layers.Layer):
    "Weights a (16, 4), b (4, 8) and c (8, 8)."

    def build(self, shape):
        self.a = self.add_weight(shape=(16, 4), name="a")
        self.b = self.add_weight(shape=(4, 8), name="b")
        self.c = self.add_weight(shape=(8, 8), name="c")


class Functions(Weights):
    def call(self, x):
        return ops.matmul(x, ops.matmul(self.a, self.b))


class Operators(Weights):
    def call(self, x):
        return x @ (2 * self.a @ (self.b / (1 + self.c[0])) @ self.c)


class Halves(Weights):
    "Only one of the factors of a product depends on the input."

    def call(self, x):
        mixed = ops.transpose(self.a @ self.b) @ self.a  # (8, 4)
        return (x @ self.a) @ ops.transpose(mixed)


class FromArrays(Weights):
    "Starts at an array, not at a weight."

    def call(self, x):
        table = np.arange(64, dtype="float32").reshape(4, 16)
        return x @ self.a @ ops.relu(ops.matmul(table, self.a) @ self.b)


class FromNothing(Weights):
    def call(self, x):
        state = ops.zeros((1, 8)) @ self.c
        for _ in range(3):
            state = ops.tanh(x @ (self.a @ self.b) + state @ self.c)
        return state


class Positions(layers.Layer):
    "A small network on a table of positions, as in Swin V2."

    def __init__(self):
        super().__init__()
        self.table = ops.convert_to_tensor(np.ones((9, 2), "float32"))
        self.wide, self.narrow = layers.Dense(32, activation="relu"), layers.Dense(16)

    def build(self, shape):
        self.wide.build((9, 2))
        self.narrow.build((9, 32))

    def call(self, x):
        return x + ops.mean(self.narrow(self.wide(self.table)), axis=0)


class Composed(layers.Layer):
    "A user's layer on a table, inside a user's layer."

    def __init__(self):
        super().__init__()
        self.inside = Functions()

    def build(self, shape):
        self.inside.build((1, 16))

    def call(self, x):
        return self.inside(ops.ones((1, 16))) + x[:, :1]


class Frozen(Functions):
    "One weight is not trained."

    def build(self, shape):
        super().build(shape)
        self.a = self.add_weight(shape=(16, 4), trainable=False, name="frozen")


class Deciding(Weights):
    "Python looks at a value, and a function chooses by one."

    def call(self, x):
        table = self.a @ self.b
        if ops.convert_to_numpy(ops.max(table)) > 1e9 or len(table) != 16:
            return x
        return x @ ops.cond(ops.min(self.b) < 1e9, lambda: table @ self.c, lambda: table)

    def compute_output_shape(self, shape):
        return (shape[0], 8)


class Normalized(layers.Conv2D):
    "Weight standardization."

    def call(self, x):
        kernel = self.kernel - ops.mean(self.kernel, axis=(0, 1, 2))
        return ops.conv(x, kernel / ops.std(kernel, axis=(0, 1, 2)), padding="same") + self.bias


class Modulated(layers.Layer):
    "A kernel that a small network makes of a learned code."

    def __init__(self):
        super().__init__()
        self.maker = layers.Dense(3 * 3 * 2 * 4)

    def build(self, shape):
        self.code = self.add_weight(shape=(1, 6), name="code")
        self.maker.build((1, 6))

    def call(self, x):
        return ops.conv(x, ops.reshape(self.maker(self.code), (3, 3, 2, 4)), padding="valid")


CASES = [
    (Functions, (16,)), (Operators, (16,)), (Halves, (16,)), (FromArrays, (16,)),
    (FromNothing, (16,)), (Positions, (16,)), (Composed, (3,)), (Frozen, (16,)),
    (lambda: Normalized(4, 3, padding="same"), (6, 6, 3)), (Modulated, (6, 6, 2)),
]  # fmt: skip


def model_of(make, shape):
    "A network of one layer."
    image, layer = keras.Input(shape), make()
    return keras.Model(image, layer(image)), layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make, shape", CASES)
def test_tensorflows_graph_has_the_same_products(make, shape, batch, training):
    model, layer = model_of(make, shape)
    report = model_cost(model, batch_size=batch, training=training, strict=True)
    assert report.total.macs == graph_macs(layer, shape, training, batch)
    assert report.total.params == sum(prod(one.shape) for one in model.weights)


def test_the_table_of_swin_v2():
    class Net(layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(64), layers.Dense(4)

        def build(self, shape):
            self.one.build((49, 2))
            self.two.build((49, 64))

        def call(self, x):
            return x + ops.sum(self.two(self.one(np.ones((49, 2), "float32"))))

    report = model_cost(model_of(Net, (5,))[0])
    assert report.total.macs == 18_816 == 49 * 2 * 64 + 49 * 64 * 4
    notes = {row.name: row.note for row in report.layers if row.macs}
    assert set(notes.values()) == {"does not depend on the input"} and len(notes) == 2


def test_an_option_leaves_it_out():
    class LowRank(layers.Layer):
        def build(self, shape):
            self.a, self.b = self.add_weight(shape=(64, 4)), self.add_weight(shape=(4, 32))

        def call(self, x):
            return ops.matmul(x, ops.matmul(self.a, self.b))

    model, _ = model_of(LowRank, (64,))
    assert model_cost(model).total.macs == 10_240
    assert model_cost(model, batch_size=8).total.macs == 8 * 2_048 + 8_192  # once a call
    without = model_cost(model, constant_work="skipped", batch_size=8)
    assert without.total.macs == 8 * 2_048 and without.total.params == 384
    assert "work that does not depend on the input skipped" in without.options
    for wrong in ({"constant_work": "no"}, {"constant_work": "skipped", "training": True},
                  {"constant_work": "skipped", "convention": "profiler"}):  # fmt: skip
        with pytest.raises(CostError, match="constant_work"):
            model_cost(model, **wrong)


def test_a_value_that_python_asks_for():
    model, _ = model_of(Deciding, (16,))
    # a @ b, table @ c, and x @ the result
    assert model_cost(model, strict=True).total.macs == 16 * 4 * 8 + 16 * 8 * 8 + 16 * 8


def test_a_call_that_insists_on_real_tensors_is_marked():
    class Insisting(Weights):
        def call(self, x):
            table = ops.matmul(self.a, self.b)
            if isinstance(table, keras.KerasTensor):
                raise TypeError("a real tensor, please")
            return x @ table

    report = model_cost(model_of(Insisting, (16,))[0])
    assert report.total.macs == 128 and report.unknown
    assert "weights and arrays" in report[report.unknown[0]].note


def test_the_field_and_the_memory_leave_weights_alone():
    image = keras.Input((8, 8, 3))
    layer = Normalized(4, 3, padding="same")
    plain = layers.Conv2D(4, 3, padding="same")
    models = [keras.Model(image, part(image)) for part in (layer, plain)]
    fields = [receptive_field(model) for model in models]
    assert fields[0].layers[-1].size == fields[1].layers[-1].size == (3, 3)
    graph = model_graph(models[0])
    made = [call for call in graph.calls if call.constant]
    kinds = ["ops.Mean", "ops.Subtract", "ops.Std", "ops.TrueDivide"]
    assert [call.kind for call in made] == kinds
    assert made[1].input_shape == ((3, 3, 3, 4), (4,)) and made[-1].output_shape == (3, 3, 3, 4)


def test_scalars_and_a_models_own_graph_are_no_work():
    class Scaled(layers.Layer):
        def call(self, x):
            return x / ops.sqrt(ops.cast(x.shape[-1], "float32"))

    assert len(model_graph(model_of(Scaled, (4,))[0]).calls) == 1
    image = keras.Input((4,))
    table = ops.ones((4, 4)) @ ops.ones((4, 4))  # computed here, once and for all
    assert model_cost(keras.Model(image, image @ table)).total.macs == 16


class Chain(Weights):
    "One product of four tensors."

    def call(self, x):
        return ops.einsum("bi,ij,jk,kl->bl", x, self.a, self.b, self.c)


class Mixed(Weights):
    "Of three, two of which depend on the input."

    def call(self, x):
        table = ops.reshape(x, (-1, 4, 4))
        return ops.einsum("bij,bkj,kl->bil", table, table @ self.c[:4, :4], self.b)


class Cell(layers.Layer):
    "A cell of a user's own: an update, gated, and a projection of the new state."

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.state_size, self.output_size = units, units, 3
        self.project = layers.Dense(3)

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.u = self.add_weight(shape=(self.units, self.units), name="u")
        self.project.build((None, self.units))

    def call(self, x, states):
        state = ops.tanh(x @ self.w + states[0] @ self.u)
        return self.project(state), [state]


def recurrent(frozen=()):
    "Unrolled, so that TensorFlow's graph has every step."
    cell = Cell(5)
    layer = layers.RNN(cell, return_sequences=True, unroll=True)
    layer.build((None, 7, 4))
    for name in frozen:
        getattr(cell, name).trainable = False
    return layer


class Doubled(layers.Layer):
    "Two layers, as one step of another layer."

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(6), layers.Dense(2)

    def build(self, shape):
        self.one.build(shape)
        self.two.build((*shape[:-1], 6))

    def call(self, x):
        return self.two(self.one(x)) * 2

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2)


HIDDEN = [
    (Chain, (16,)), (Mixed, (16,)), (recurrent, (7, 4)), (lambda: recurrent(["w"]), (7, 4)),
    (lambda: recurrent(["w", "u"]), (7, 4)), (lambda: layers.TimeDistributed(Doubled()), (5, 4)),
    (lambda: layers.RNN([Cell(5), Cell(4)], return_sequences=True, unroll=True), (6, 3)),
]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make, shape", HIDDEN)
def test_tensorflows_graph_agrees_about_what_is_inside(make, shape, training):
    model, layer = model_of(make, shape)
    report = model_cost(model, batch_size=2, training=training, strict=True)
    assert report.total.macs == graph_macs(layer, shape, training, 2)


class Sum(keras.Model):
    "Takes two arguments."

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.Dense(4)

    def call(self, x, y):
        return self.one(x) + self.two(y)


class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.one = layers.Dense(4)

    def call(self, x):
        return self.one(x)


def test_a_model_is_built_from_what_is_said():
    shapes = {"x": (6,), "y": (3,)}
    assert model_cost(Sum(), input_shape=shapes).total.macs == 36
    assert model_cost(Plain(), input_shape=(6,)).total.macs == 24
    assert model_cost(keras.Sequential([layers.Dense(4)]), input_shape=(6,)).total.macs == 24
    called = Sum()
    called(np.ones((1, 6)), np.ones((1, 3)))
    assert model_cost(called, input_shape=shapes).total.macs == 36
    with pytest.raises(CostError, match=r"input_shape=\{'x': \(...\), 'y': \(...\)\}"):
        model_cost(called)
    with pytest.raises(CostError, match="or its input_shape"):
        model_cost(Plain())
    with pytest.raises(CostError, match="cannot be for"):
        model_cost(Sum(), input_shape=(6,))


def test_a_layer_with_two_arguments():
    class Both(layers.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(4), layers.Dense(4)

        def build(self, x_shape, y_shape):
            self.one.build(x_shape)
            self.two.build(y_shape)

        def call(self, x, y):
            return self.one(x) + self.two(y)

    inputs = [keras.Input((6,)), keras.Input((3,))]
    assert model_cost(keras.Model(inputs, Both()(*inputs)), strict=True).total.macs == 36
