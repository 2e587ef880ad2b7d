"""The walk through a model on what does not belong in its chapter: many shapes of models, back
ends, and what it must not touch."""

import os
import subprocess
import sys
import textwrap
from functools import cache

import numpy as np
import pytest

from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.records import GraphError


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def names(model, **options):
    return [call.name for call in model_graph(model, **options).calls]


def test_sequential_equals_keras_list(keras):
    from fashion_nb.models.zoo import build_model

    model = build_model("stride_2")
    calls = model_graph(model).calls
    assert [call.name for call in calls] == [layer.name for layer in model.layers]
    assert [call.output_shape for call in calls] == [
        layer.output.shape[1:] for layer in model.layers
    ]
    assert [call.parents for call in calls] == [(), *((index,) for index in range(len(calls) - 1))]


def test_every_input_of_a_call_is_somebodys_output(keras):
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    left, right = layers.Conv2D(4, 1)(image), layers.Conv2D(4, 3, padding="same")(image)
    merged = layers.Concatenate()([left, right, left])
    model = keras.Model(image, [merged, layers.Add()([left, right])])
    graph = model_graph(model, batch_size=3)
    made = {tensor.key: tensor for call in graph.calls for tensor in call.outputs} | {
        tensor.key: tensor for tensor in graph.inputs
    }
    for call in graph.calls:
        assert all(made[tensor.key] == tensor and tensor.shape[0] == 3 for tensor in call.inputs)
    assert [tensor.shape for tensor in graph.outputs] == [(3, 16, 16, 12), (3, 16, 16, 4)]
    assert graph[merged._keras_history.operation.name].parents == (0, 1)


def test_dictionary_of_inputs_reaches_a_nested_model_in_the_right_order(keras):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    inner = keras.Model({"a": a, "b": b}, keras.layers.Subtract(name="minus")([a, b]), name="inner")
    first, second = keras.Input((3,)), keras.Input((3,))
    outer = keras.Model([first, second], inner({"b": first, "a": second}))
    (call,) = model_graph(outer).calls
    assert [tensor.producer for tensor in call.inputs] == [-2, -1]


def test_nested_model_on_another_size_than_it_was_made_for(keras):
    inner = keras.Sequential(
        [keras.Input((None, None, 2)), keras.layers.Conv2D(4, 3, strides=2, name="conv")],
        name="inner",
    )
    image = keras.Input((9, 17, 2))
    assert [call.output_shape for call in model_graph(keras.Model(image, inner(image))).calls] == [
        (4, 8, 4)
    ]


def test_fixed_batch_gives_way_to_the_one_asked_for(keras):
    image = keras.Input(batch_shape=(8, 6, 6, 1))
    model = keras.Model(image, keras.layers.Flatten()(image))
    assert [model_graph(model, batch_size=size).outputs[0].shape for size in (1, 5)] == [
        (1, 36),
        (5, 36),
    ]


def test_several_arguments_of_a_subclassed_model(keras):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__(name="pair")
            self.dense = keras.layers.Dense(2, name="dense")

        def call(self, left, right):
            return self.dense(left) + self.dense(right)

    model = Pair()
    model(np.zeros((1, 3)), np.zeros((1, 3)))
    assert names(model, input_shape={"left": (3,), "right": (3,)}) == ["dense", "dense#2", "add"]


def test_functional_subclass_with_a_call_of_its_own_is_traced(keras):
    class Doubled(keras.Model):
        def call(self, inputs):
            return 2 * super().call(inputs)

    image = keras.Input((4,))
    model = Doubled(image, keras.layers.Dense(3, name="dense")(image))
    assert names(model)[-1].startswith("multiply")


def test_walk_leaves_the_model_alone(keras):
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.dense = keras.layers.Dense(4, name="dense")

        def build(self, shape):
            self.dense.build(shape)

        def call(self, inputs):
            return keras.ops.relu(self.dense(inputs))

    block, start = Block(), keras.Input((4,))
    model = keras.Model(start, block(block(start)))
    before = (
        len(block._inbound_nodes),
        len(block.dense._inbound_nodes),
        model.count_params(),
        model.to_json(),
    )
    for _ in range(3):
        assert names(model) == ["block/dense", "block/relu", "block#2/dense", "block#2/relu"]
    assert before == (
        len(block._inbound_nodes),
        len(block.dense._inbound_nodes),
        model.count_params(),
        model.to_json(),
    )


def test_layer_that_cannot_be_followed_stays_one_call(keras):
    class Secretive(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.convert_to_tensor(np.asarray(inputs))

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    start = keras.Input((4,))
    model = keras.Model(start, Secretive(name="secretive")(start))
    assert [(call.name, call.kind) for call in model_graph(model).calls] == [
        ("secretive", "Secretive")
    ]


@pytest.mark.parametrize("thing", [None, 3, "model.keras", object(), np.zeros(3)])
def test_what_is_no_model(thing):
    with pytest.raises(GraphError, match="expected a Keras model"):
        model_graph(thing)


def test_bad_sizes_are_one_sentence(keras):
    start = keras.Input((None, 3), name="text")
    model = keras.Model(start, keras.layers.Dense(2)(start), name="net")
    for shape, words in [
        ((4, 5), "fits"),
        ((4,), "fits"),
        ((0, 3), "fits"),
        ([(4, 3), (4, 3)], "expected 1"),
        ({"image": (4, 3)}, "'image'"),
    ]:
        with pytest.raises(GraphError, match=words):
            model_graph(model, input_shape=shape)
    for size in (0, -1, 1.5, "2"):
        with pytest.raises(GraphError, match="batch_size"):
            model_graph(model, (4, 3), batch_size=size)


BACKENDS = """
    import keras, numpy as np
    from fashion_nb.analysis.graph import model_graph
    layers, ops = keras.layers, keras.ops

    class Block(layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        def build(self, shape):
            self.conv.build(shape)
        def call(self, inputs):
            return ops.relu(self.conv(inputs) + inputs)

    image = keras.Input((None, None, 4))
    padded = layers.ZeroPadding2D(1, name="pad")(image)
    features = layers.GlobalAveragePooling2D(name="all")(Block()(padded))
    model = keras.Model(image, ops.reshape(features, (-1, 2)))
    calls = model_graph(model, (6, 6, 4)).calls
    print([(call.name, call.kind, call.output_shape, call.parents) for call in calls])
"""


@cache
def listed(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BACKENDS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_calls_on_every_back_end(backend):
    pytest.importorskip(backend)
    assert listed(backend) == listed("tensorflow") and "'block/conv'" in listed(backend)
