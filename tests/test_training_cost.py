"""What a training step costs: forward and backward pass against PyTorch's counter, on random
networks parts of which are frozen, and on layers that hold several products."""
import os
import random

import keras
import pytest
from keras import layers as L
from keras import ops
from random_models import KINDS, random_model

from fashion_nb.analysis.cost import model_cost
from fashion_nb.checks.workers import counter_macs, torch_count

pytest.importorskip("torch")

# Keras on PyTorch fails on these on tensors without contents, or replaces their input by one
# without a gradient (max pooling); an Einstein sum over one number it does not count
ODD = {
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "RepeatVector", "AveragePooling3D",
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "EinsumDense",
}  # fmt: skip
# its formula for the gradient of a grouped kernel forgets to divide by the groups
GROUPED = {
    "grouped", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
}  # fmt: skip
BLOCK = 60
START = 10_000 * int(os.environ.get("FASHION_NB_SEED", "0"))  # the first seed


def frozen_in_part(model, seed):
    "The same model, three in ten of its layers with weights frozen."
    draw = random.Random(seed)
    for layer in model._flatten_layers(include_self=False):
        if layer.weights and draw.random() < 0.3:
            layer.trainable = False
    return model


def backward(model, **options):
    "MACs of the backward pass alone."
    return (
        model_cost(model, training=True, **options).total.macs
        - model_cost(model, **options).total.macs
    )


def check(models):
    "Our backward pass against PyTorch's, model by model."
    forward, both = (
        counter_macs(models, ("torch",), training=training) for training in (False, True)
    )
    wrong = {}
    for number, (model, one, two) in enumerate(zip(models, forward, both)):
        said = two["torch"].macs - one["torch"].macs
        if said != (ours := backward(model)):
            wrong[number] = (ours, said, [type(layer).__name__ for layer in model.layers])
    assert not wrong, wrong


BLOCKS = [pytest.param(k, marks=pytest.mark.slow if k else ()) for k in range(20)]


@pytest.mark.parametrize("block", BLOCKS)
def test_random_graphs(block):
    seeds = range(START + block * BLOCK, START + (block + 1) * BLOCK)
    check([frozen_in_part(random_model(k, 1 + k % 12, without=ODD | GROUPED), k) for k in seeds])


def model_of(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


LAYERS = {
    "attention": lambda: model_of(lambda x: L.MultiHeadAttention(2, 8)(x, x), (10, 16)),
    "attention, two inputs": lambda: model_of(L.MultiHeadAttention(2, 8), (10, 16), (7, 16)),
    "attention, values behind a layer": lambda: model_of(
        lambda x, y: L.MultiHeadAttention(2, 8)(x, L.Dense(16)(y), x), (7, 16), (7, 16)
    ),
    "dot attention": lambda: model_of(
        lambda x: L.Attention()([L.Dense(8)(x), x]), (10, 8)
    ),
    "two in each step": lambda: model_of(
        L.TimeDistributed(keras.Sequential([L.Dense(4), L.Dense(4)])), (3, 5)
    ),
    "a model inside": lambda: model_of(
        keras.Sequential([L.Dense(4), L.Activation("tanh"), L.Dense(3)]), (5,)
    ),
    "recurrent": lambda: model_of(L.SimpleRNN(5), (6, 4)),
    "long short-term memory": lambda: model_of(L.LSTM(5, return_sequences=True), (6, 4)),
    "gated": lambda: model_of(lambda x: L.GRU(5)(L.Dense(3)(x)), (6, 4)),
    "stacked cells": lambda: model_of(L.RNN([L.LSTMCell(3), L.GRUCell(4)]), (6, 4)),
    "both directions": lambda: model_of(L.Bidirectional(L.LSTM(3)), (6, 4)),
    "a state that is given": lambda: model_of(
        lambda x, y: L.SimpleRNN(5)(x, initial_state=L.Dense(5)(y)), (6, 4), (3,)
    ),
    "a gradient that is stopped": lambda: model_of(
        lambda x: L.Dense(3)(ops.stop_gradient(L.Dense(4)(x))), (5,)
    ),
    "a product of two": lambda: model_of(
        lambda x, y: ops.matmul(L.Dense(4)(x), y), (6, 5), (4, 3)
    ),
    "Dot": lambda: model_of(
        lambda x, y: L.Dot(axes=1)([L.Dense(4)(x), y]), (5,), (4,)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_several_products(name):
    model = LAYERS[name]()
    for frozen in (False, True):
        if frozen:
            frozen_in_part(model, len(name))
        said = torch_count(model, training=True).macs - torch_count(model).macs
        assert backward(model) == said, (name, frozen)


def test_by_hand():
    "Nobody needs the gradient of the first input; what comes before a second product needs one."
    separable = model_of(L.SeparableConv2D(6, 3), (8, 8, 3))
    deep, wide = 36 * 3 * 9, 36 * 3 * 6
    assert model_cost(separable, training=True).total.macs == 2 * (deep + wide) + wide == 3_888
    attention = model_of(lambda x: L.MultiHeadAttention(2, 8)(x, x), (10, 16))
    assert model_cost(attention, training=True).total.macs == 32_640
    # four heads of queries and two of keys and values, six wide: projections, scores, output
    grouped = model_of(lambda x: L.GroupQueryAttention(6, 4, 2)(x, x), (10, 16))
    around, scores = 10 * 16 * 6 * (4 + 2 + 2), 2 * 4 * 10 * 10 * 6
    back = 10 * 16 * 6 * 4
    assert model_cost(grouped, training=True).total.macs == (
        2 * around + 3 * scores + 3 * back
    )


def test_the_kinds_left_out_are_named():
    assert ODD <= KINDS and GROUPED - KINDS == {"grouped"}
