"""The formulas of every layer against counts that were made without them, and mutants of the
formulas themselves.

Run as a script under KERAS_BACKEND=jax this file prints what XLA's analysis of the lowered program
says of each case: RECORDED was made so.
"""

import ast
import inspect
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import types
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from fashion_nb.analysis import (
    activations,
    convolutions,
    functions,
    normalizations,
    ordering_functions,
    other_layers,
    products,
    recurrent,
)
from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.operations import (
    FREE,
    HANDLERS,
    UNKNOWN,
    is_known,
    layer_work,
    register_handler,
)
from fashion_nb.analysis.terms import Term, Work

CASES = {}  # name: function, shapes of its inputs, dtype


class _Present:
    "keras.ops, or keras.layers, with None for what an older version of Keras does not have."

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, name, None)


ops, L = _Present(ops), _Present(L)
# the version that all cases are for
NEWEST = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)


def case(name, function, *shapes, dtype="float32"):
    assert name not in CASES and (function or not NEWEST), name
    if function is None:
        return
    CASES[name] = (function, shapes, dtype)


MAP, ROWS, VECTORS = (16, 16, 8), (4, 16), (100,)
ones = lambda *shape: ops.ones(shape)  # noqa: E731

# ---------------------------------------------------------------- layers
for name in (
    "relu relu6 leaky_relu elu selu celu exponential sigmoid silu tanh softsign hard_sigmoid"
    " hard_silu hard_shrink soft_shrink tanh_shrink sparse_plus sparse_sigmoid"
).split():
    case(f"activation {name}", lambda x, name=name: L.Activation(name)(x), VECTORS)
for options in (
    {"max_value": 6},
    {"max_value": 5},
    {"negative_slope": 0.1},
    {"negative_slope": 0.1, "max_value": 5},
):
    case(f"ReLU {options}", lambda x, options=options: L.ReLU(**options)(x), VECTORS)
for kind in ("PReLU", "ELU", "LeakyReLU"):
    case(kind, lambda x, kind=kind: getattr(L, kind)()(x), VECTORS)
case("gelu, tanh", lambda x: ops.gelu(x, approximate=True), VECTORS)
case("glu", lambda x: ops.glu(x), VECTORS)
case("threshold", lambda x: ops.threshold(x, 1.0, 0.0), VECTORS)
for padding in ("valid", "same"):
    for stride in (1, 2):
        place = {"padding": padding, "strides": stride}
        name = f"{padding}, stride {stride}"
        case(f"Conv1D {name}", lambda x, place=place: L.Conv1D(4, 4, **place)(x), (11, 2))
        case(
            f"Conv2D {name}",
            lambda x, place=place: L.Conv2D(4, 3, activation="relu", **place)(x),
            MAP,
        )
        case(
            f"Conv3D {name}",
            lambda x, place=place: L.Conv3D(4, (3, 2, 1), **place)(x),
            (5, 6, 7, 2),
        )
        case(
            f"DepthwiseConv2D {name}", lambda x, place=place: L.DepthwiseConv2D(3, **place)(x), MAP
        )
        case(
            f"SeparableConv2D {name}",
            lambda x, place=place: L.SeparableConv2D(4, 3, depth_multiplier=2, **place)(x),
            MAP,
        )
        case(
            f"Conv2DTranspose {name}",
            lambda x, place=place: L.Conv2DTranspose(4, 3, use_bias=False, **place)(x),
            MAP,
        )
        case(f"ops.conv {name}", lambda x, place=place: ops.conv(x, ones(3, 2, 8, 4), **place), MAP)
        case(
            f"ops.separable_conv {name}",
            lambda x, place=place: ops.separable_conv(
                x, ones(3, 2, 8, 2), ones(1, 1, 16, 4), **place
            ),
            MAP,
        )
        case(
            f"ops.depthwise_conv {name}",
            lambda x, place=place: ops.depthwise_conv(x, ones(3, 3, 8, 2), **place),
            MAP,
        )
    case(
        f"Conv2D dilated {padding}",
        lambda x, padding=padding: L.Conv2D(4, 3, dilation_rate=2, padding=padding)(x),
        (15, 16, 8),
    )
    case(
        f"Conv2D grouped {padding}",
        lambda x, padding=padding: L.Conv2D(8, 3, groups=4, padding=padding)(x),
        MAP,
    )
    case(
        f"DepthwiseConv2D multiplied {padding}",
        lambda x, padding=padding: L.DepthwiseConv2D(3, depth_multiplier=2, padding=padding)(x),
        MAP,
    )
    case(
        f"DepthwiseConv1D {padding}",
        lambda x, padding=padding: L.DepthwiseConv1D(3, padding=padding)(x),
        (11, 4),
    )
    for kernel, stride in ((2, 3), (5, 2)):
        place = {"padding": padding, "strides": stride, "use_bias": False}
        case(
            f"Conv2DTranspose {kernel} by {stride} {padding}",
            lambda x, kernel=kernel, place=place: L.Conv2DTranspose(4, kernel, **place)(x),
            MAP,
        )
    case(
        f"Conv1DTranspose {padding}",
        lambda x, padding=padding: L.Conv1DTranspose(
            4, 4, strides=3, padding=padding, use_bias=False
        )(x),
        (11, 3),
    )
    case(
        f"Conv3DTranspose {padding}",
        lambda x, padding=padding: L.Conv3DTranspose(
            4, 3, strides=2, padding=padding, use_bias=False
        )(x),
        (4, 5, 6, 3),
    )
    case(
        f"MaxPooling2D {padding}",
        lambda x, padding=padding: L.MaxPooling2D((3, 2), strides=2, padding=padding)(x),
        (15, 16, 8),
    )
case("AveragePooling2D", lambda x: L.AveragePooling2D((3, 2), strides=2)(x), (15, 16, 8))
case(
    "Conv2D channels first",
    lambda x: L.Conv2D(4, 3, padding="same", data_format="channels_first")(x),
    (8, 16, 15),
)
case("GlobalAveragePooling2D", lambda x: L.GlobalAveragePooling2D()(x), MAP)
case("GlobalMaxPooling2D", lambda x: L.GlobalMaxPooling2D()(x), MAP)
case("Dense", lambda x: L.Dense(7, activation="relu")(x), (5, 6))
case("EinsumDense", lambda x: L.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de")(x), (5, 6))
case("ReversibleEmbedding", lambda x: L.ReversibleEmbedding(100, 8)(x, reverse=True), (5, 8))
for options in ({}, {"center": False}, {"scale": False}):
    case(
        f"BatchNormalization {options}",
        lambda x, options=options: L.BatchNormalization(**options)(x),
        MAP,
    )
case("RMSNormalization", lambda x: L.RMSNormalization()(x), ROWS)
case("UnitNormalization", lambda x: L.UnitNormalization()(x), ROWS)
case("SpectralNormalization", lambda x: L.SpectralNormalization(L.Dense(4))(x), (6,))
for kind in ("Add", "Multiply", "Maximum", "Minimum", "Average"):
    case(kind, lambda a, b, c, kind=kind: getattr(L, kind)()([a, b, c]), (5, 4), (5, 4), (5, 4))
case("Subtract", lambda a, b: L.Subtract()([a, b]), (5, 4), (5, 4))
case("Dot", lambda a, b: L.Dot(2)([a, b]), (10, 16), (7, 16))
case("Dot normalized", lambda a, b: L.Dot((2, 1), normalize=True)([a, b]), (10, 16), (16, 7))
for kind in ("SimpleRNN", "LSTM", "GRU"):
    case(kind, lambda x, kind=kind: getattr(L, kind)(6, unroll=True)(x), (3, 8))
case("GRU, reset before", lambda x: L.GRU(6, reset_after=False, unroll=True)(x), (3, 8))
case("LSTMCell", lambda x, h, c: L.LSTMCell(6)(x, [h, c])[0], (8,), (6,), (6,))
case(
    "Bidirectional", lambda x: L.Bidirectional(L.LSTM(6, unroll=True), merge_mode="ave")(x), (3, 8)
)
case("RNN of two cells", lambda x: L.RNN([L.LSTMCell(6), L.GRUCell(5)], unroll=True)(x), (3, 8))
case("ConvLSTM2D", lambda x: L.ConvLSTM2D(4, 3, padding="same", unroll=True)(x), (3, 8, 8, 2))
case("ConvLSTM1D", lambda x: L.ConvLSTM1D(4, 3, strides=2, unroll=True)(x), (3, 9, 2))
case(
    "TimeDistributed", lambda x: L.TimeDistributed(L.Conv2D(4, 3, padding="same"))(x), (3, 8, 8, 2)
)
case("AutoContrast", lambda x: L.AutoContrast()(x), (8, 8, 3))
for mode in ("real", "stft", "angle", "magnitude", "log"):
    for padding in ("valid", "same"):
        options = {
            "mode": mode,
            "padding": padding,
            "frame_length": 8,
            "frame_step": 4,
            "fft_length": 16,
        }
        case(
            f"STFTSpectrogram {mode} {padding}",
            lambda x, options=options: L.STFTSpectrogram(**options)(x),
            (32, 1),
        )

# ---------------------------------------------------------------- keras.ops
for name in (
    "absolute ceil floor round sign square sqrt rsqrt exp expm1 log log1p log2 log10 exp2 sin cos"
    " tan tanh arctan erf cbrt reciprocal negative isnan isfinite"
).split():
    case(f"ops.{name}", getattr(ops, name), VECTORS)
for name in (
    "add subtract multiply divide true_divide maximum minimum power equal greater less_equal"
    " arctan2"
).split():
    case(f"ops.{name}", getattr(ops, name), VECTORS, VECTORS)
for name in "sum mean max min prod average ptp".split():
    case(f"ops.{name}", lambda x, name=name: getattr(ops, name)(x, axis=-1), ROWS)
case("ops.clip", lambda x: ops.clip(x, 0.0, 1.0), VECTORS)
case("ops.where", lambda x: ops.where(x > 0, x, 0.0), VECTORS)
case("ops.matmul", ops.matmul, (3, 4), (4, 5))
case("ops.einsum", lambda a, b: ops.einsum("bij,bjk->bik", a, b), (3, 4), (4, 5))
case(
    "ops.einsum, an index of one operand",
    lambda a, b: ops.einsum("bij,bjk->b", a, b),
    (3, 4),
    (4, 5),
)
case("ops.einsum, dots", lambda a, b: ops.einsum("...ij,...jk", a, b), (3, 4), (4, 5))
case("ops.tensordot, axes", lambda a: ops.tensordot(a, ones(4, 3, 5), [[2, 1], [0, 1]]), (3, 4))
case("ops.tensordot, one", lambda a: ops.tensordot(a, ones(4, 5), 1), (3, 4))
case("ops.outer", ops.outer, (3,), (4,))
if NEWEST:  # before, Keras answered with another shape than it computed
    case("ops.inner", lambda a: ops.inner(a, ones(6, 4)), (3, 4))
case("ops.vdot", ops.vdot, (3, 4), (3, 4))
case("ops.cross", ops.cross, (5, 3), (5, 3))
case("ops.rms_normalization", lambda x: ops.rms_normalization(x), ROWS)
case("ops.normalize", lambda x: ops.normalize(x), ROWS)
case("ops.diff", lambda x: ops.diff(x, n=2), (8,))
case("ops.cdist", ops.cdist, (3, 4), (5, 4))
case("ops.binary_crossentropy", lambda t, x: ops.binary_crossentropy(t, x), (8,), (8,))
case("ops.categorical_crossentropy", lambda t, x: ops.categorical_crossentropy(t, x), (8,), (8,))
case("ops.sobel_edges", lambda x: ops.image.sobel_edges(x), (8, 8, 3))
case("ops.correlate", lambda a: ops.correlate(a[0], ones(3), mode="same"), (8,))
for mode in ("valid", "full"):
    case(
        f"ops.correlate {mode}", lambda a, mode=mode: ops.correlate(a[0], ones(3), mode=mode), (8,)
    )
case("Conv2D dilated by 3", lambda x: L.Conv2D(4, 3, dilation_rate=3, padding="same")(x), MAP)
case("ops.psnr", lambda a, b: ops.psnr(a, b, 1.0), (8, 8, 3), (8, 8, 3))
case(
    "ops.segment_sum", lambda x: ops.segment_sum(x[0], np.array([0, 0, 1]), num_segments=2), (3, 4)
)


def calls_of(function, shapes, dtype):
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    model = keras.Model(inputs, function(*inputs))
    return model, list(model_graph(model, opaque=is_known).calls)


def measured():
    """For each case: FLOPs and transcendentals as XLA's analysis of the lowered program says; needs
    the JAX back end."""
    import jax

    found = {}
    for name, (function, shapes, dtype) in CASES.items():
        model, _ = calls_of(function, shapes, dtype)
        tensors = [np.zeros((1, *shape), dtype) for shape in shapes]
        weights = [
            [weight.value for weight in part]
            for part in (model.trainable_variables, model.non_trainable_variables)
        ]
        lowered = jax.jit(
            lambda trainable, fixed, x, model=model: model.stateless_call(
                trainable, fixed, x, training=False
            )[0]
        ).lower(*weights, tensors)
        analysis = lowered.cost_analysis()
        found[name] = [int(analysis.get("flops", 0)), int(analysis.get("transcendentals", 0))]
    return found


if __name__ == "__main__":
    print(json.dumps(measured()))
    sys.exit()


# ---------------------------------------------------------------- what XLA said
# FLOPs, transcendentals: XLA's analysis of the lowered program, jax 0.10.2, Keras 3.15.1
RECORDED = {
    "activation relu": (100, 0), "activation relu6": (200, 0), "activation leaky_relu": (300, 0),
    "activation elu": (500, 100),
    "activation selu": (600, 100), "activation celu": (500, 100),
    "activation exponential": (0, 100), "activation sigmoid": (300, 100),
    "activation silu": (400, 100), "activation tanh": (0, 100), "activation softsign": (300, 0),
    "activation hard_sigmoid": (400, 0),
    "activation hard_silu": (500, 0), "activation hard_shrink": (300, 0),
    "activation soft_shrink": (600, 0), "activation tanh_shrink": (100, 100),
    "activation sparse_plus": (700, 0), "activation sparse_sigmoid": (400, 0),
    "ReLU {'max_value': 6}": (200, 0), "ReLU {'max_value': 5}": (300, 0),
    "ReLU {'negative_slope': 0.1}": (300, 0),
    "ReLU {'negative_slope': 0.1, 'max_value': 5}": (700, 0), "PReLU": (600, 0), "ELU": (500, 100),
    "LeakyReLU": (300, 0), "gelu, tanh": (800, 100), "glu": (200, 50), "threshold": (200, 0),
    "Conv1D valid, stride 1": (544, 0),
    "Conv2D valid, stride 1": (114464, 0), "Conv3D valid, stride 1": (10500, 0),
    "DepthwiseConv2D valid, stride 1": (29792, 0),
    "SeparableConv2D valid, stride 1": (82320, 0), "Conv2DTranspose valid, stride 1": (147456, 0),
    "ops.conv valid, stride 1": (80640, 0),
    "ops.separable_conv valid, stride 1": (67200, 0),
    "ops.depthwise_conv valid, stride 1": (56448, 0), "Conv1D valid, stride 2": (272, 0),
    "Conv2D valid, stride 2": (28616, 0), "Conv3D valid, stride 2": (2400, 0),
    "DepthwiseConv2D valid, stride 2": (7448, 0),
    "SeparableConv2D valid, stride 2": (20580, 0), "Conv2DTranspose valid, stride 2": (147456, 0),
    "ops.conv valid, stride 2": (21504, 0),
    "ops.separable_conv valid, stride 2": (17920, 0),
    "ops.depthwise_conv valid, stride 2": (14112, 0), "Conv2D dilated valid": (76560, 0),
    "Conv2D grouped valid": (58016, 0), "DepthwiseConv2D multiplied valid": (59584, 0),
    "DepthwiseConv1D valid": (252, 0),
    "Conv2DTranspose 2 by 3 valid": (65536, 0), "Conv2DTranspose 5 by 2 valid": (409600, 0),
    "Conv1DTranspose valid": (1056, 0),
    "Conv3DTranspose valid": (77760, 0), "MaxPooling2D valid": (2240, 0),
    "Conv1D same, stride 1": (684, 0), "Conv2D same, stride 1": (137472, 0),
    "Conv3D same, stride 1": (16856, 0), "DepthwiseConv2D same, stride 1": (35904, 0),
    "SeparableConv2D same, stride 1": (101504, 0),
    "Conv2DTranspose same, stride 1": (135424, 0), "ops.conv same, stride 1": (91264, 0),
    "ops.separable_conv same, stride 1": (78400, 0),
    "ops.depthwise_conv same, stride 1": (67712, 0), "Conv1D same, stride 2": (360, 0),
    "Conv2D same, stride 2": (34368, 0),
    "Conv3D same, stride 2": (2832, 0), "DepthwiseConv2D same, stride 2": (8976, 0),
    "SeparableConv2D same, stride 2": (25376, 0),
    "Conv2DTranspose same, stride 2": (141376, 0), "ops.conv same, stride 2": (23552, 0),
    "ops.separable_conv same, stride 2": (19968, 0),
    "ops.depthwise_conv same, stride 2": (16928, 0), "Conv2D dilated same": (116416, 0),
    "Conv2D grouped same": (69760, 0),
    "DepthwiseConv2D multiplied same": (71808, 0), "DepthwiseConv1D same": (292, 0),
    "Conv2DTranspose 2 by 3 same": (65536, 0),
    "Conv2DTranspose 5 by 2 same": (379456, 0), "Conv1DTranspose same": (1032, 0),
    "Conv3DTranspose same": (62832, 0), "MaxPooling2D same": (2560, 0),
    "AveragePooling2D": (2688, 0), "Conv2D channels first": (127552, 0),
    "GlobalAveragePooling2D": (2048, 0), "GlobalMaxPooling2D": (2040, 0),
    "Dense": (490, 0), "EinsumDense": (390, 0), "ReversibleEmbedding": (8000, 0),
    "BatchNormalization {}": (4136, 8),
    "BatchNormalization {'center': False}": (4128, 8),
    "BatchNormalization {'scale': False}": (4128, 8), "RMSNormalization": (260, 4),
    "UnitNormalization": (192, 4), "SpectralNormalization": (52, 0), "Add": (40, 0),
    "Multiply": (40, 0), "Maximum": (40, 0), "Minimum": (40, 0),
    "Average": (60, 0), "Subtract": (20, 0), "Dot": (2240, 0), "Dot normalized": (3056, 17),
    "SimpleRNN": (540, 18), "LSTM": (2394, 90),
    "GRU": (1872, 54), "GRU, reset before": (1818, 54), "LSTMCell": (798, 30),
    "Bidirectional": (4800, 180), "RNN of two cells": (3684, 135),
    "ConvLSTM2D": (294912, 3840), "ConvLSTM1D": (7152, 240), "TimeDistributed": (24000, 0),
    "AutoContrast": (1542, 0),
    "STFTSpectrogram real valid": (1008, 0), "STFTSpectrogram real same": (1080, 0),
    "STFTSpectrogram stft valid": (2016, 0),
    "STFTSpectrogram stft same": (2160, 0), "STFTSpectrogram angle valid": (2016, 63),
    "STFTSpectrogram angle same": (2160, 72),
    "STFTSpectrogram magnitude valid": (2268, 63), "STFTSpectrogram magnitude same": (2448, 72),
    "STFTSpectrogram log valid": (2331, 126),
    "STFTSpectrogram log same": (2520, 144), "ops.absolute": (100, 0), "ops.ceil": (100, 0),
    "ops.floor": (100, 0), "ops.round": (100, 0),
    "ops.sign": (100, 0), "ops.square": (100, 0), "ops.sqrt": (0, 100), "ops.rsqrt": (0, 100),
    "ops.exp": (0, 100), "ops.expm1": (0, 100),
    "ops.log": (0, 100), "ops.log1p": (0, 100), "ops.log2": (100, 100), "ops.log10": (100, 100),
    "ops.exp2": (100, 100), "ops.sin": (0, 100),
    "ops.cos": (0, 100), "ops.tan": (0, 100), "ops.tanh": (0, 100), "ops.arctan": (0, 100),
    "ops.erf": (0, 100), "ops.cbrt": (0, 100),
    "ops.reciprocal": (100, 0), "ops.negative": (100, 0), "ops.isnan": (100, 0),
    "ops.isfinite": (100, 0), "ops.add": (100, 0),
    "ops.subtract": (100, 0), "ops.multiply": (100, 0), "ops.divide": (100, 0),
    "ops.true_divide": (100, 0), "ops.maximum": (100, 0),
    "ops.minimum": (100, 0), "ops.power": (0, 100), "ops.equal": (100, 0), "ops.greater": (100, 0),
    "ops.less_equal": (100, 0),
    "ops.arctan2": (0, 100), "ops.sum": (60, 0), "ops.mean": (64, 0), "ops.max": (60, 0),
    "ops.min": (60, 0), "ops.prod": (60, 0),
    "ops.average": (64, 0), "ops.ptp": (124, 0), "ops.clip": (200, 0), "ops.where": (200, 0),
    "ops.matmul": (120, 0), "ops.einsum": (120, 0),
    "ops.einsum, an index of one operand": (32, 0), "ops.einsum, dots": (120, 0),
    "ops.tensordot, axes": (120, 0), "ops.tensordot, one": (120, 0),
    "ops.outer": (12, 0), "ops.inner": (144, 0), "ops.vdot": (24, 0), "ops.cross": (45, 0),
    "ops.rms_normalization": (196, 4),
    "ops.normalize": (192, 4), "ops.diff": (13, 0), "ops.cdist": (165, 15),
    "ops.binary_crossentropy": (64, 16),
    "ops.categorical_crossentropy": (47, 8), "ops.sobel_edges": (5808, 0), "ops.correlate": (44, 0),
    "ops.correlate valid": (36, 0), "ops.correlate full": (48, 0),
    "Conv2D dilated by 3": (113920, 0), "ops.psnr": (579, 1), "ops.segment_sum": (12, 0),
}  # fmt: skip

# ---------------------------------------------------------------- what no counter counts the same
# way, from the dimensions
HAND = {}  # name: function, shapes, dtype, training, (macs, biases, other, transcendental)


def hand(name, function, *shapes, expected, dtype="float32", training=False):
    assert name not in HAND and (function or not NEWEST), name
    if function is None:
        return
    HAND[name] = (function, shapes, dtype, training, expected)


def low_rank_embedding(x):
    layer = L.Embedding(9, 4)
    layer.build()
    layer.enable_lora(2)
    return layer(x)


N = 160  # numbers of 10 vectors of 16
hand("softmax", lambda x: L.Softmax()(x), (10, 16), expected=(0, 0, 10 * (4 * 16 - 2), N))
hand(
    "softmax over two axes",
    lambda x: L.Softmax(axis=(1, 2))(x),
    (10, 16),
    expected=(0, 0, 4 * N - 2 + 1, 2 * N + 1),
)
hand(
    "Activation softmax",
    lambda x: L.Activation("softmax")(x),
    (10, 16),
    expected=(0, 0, 10 * (4 * 16 - 2), N),
)
hand("ops.softmax", ops.softmax, (10, 16), expected=(0, 0, 10 * (4 * 16 - 2), N))
hand("ops.log_softmax", ops.log_softmax, (10, 16), expected=(0, 0, 10 * (4 * 16 - 2), N + 10))
hand("ops.sparsemax", ops.sparsemax, (16,), expected=(0, 0, 16 * 4 + 2 * 15 + 6 * 16, 0))
hand("softplus", ops.softplus, (100,), expected=(0, 0, 400, 200))
hand("mish", lambda x: L.Activation("mish")(x), (100,), expected=(0, 0, 500, 300))
hand("gelu", lambda x: L.Activation("gelu")(x), (100,), expected=(0, 0, 400, 100))
hand("ReLU over a threshold", lambda x: L.ReLU(threshold=1.0)(x), (100,), expected=(0, 0, 200, 0))
hand(
    "ReLU over a threshold, leaking",
    lambda x: L.ReLU(threshold=1.0, negative_slope=0.1)(x),
    (100,),
    expected=(0, 0, 700, 0),
)
hand(
    "Conv1D causal",
    lambda x: L.Conv1D(6, 3, padding="causal", dilation_rate=2)(x),
    (10, 4),
    expected=(10 * 6 * 3 * 4, 60, 0, 0),
)
hand(
    "AveragePooling1D",
    lambda x: L.AveragePooling1D(3, padding="same")(x),
    (10, 2),
    expected=(0, 0, 4 * 2 * 3, 0),
)
hand("ops.max_pool", lambda x: ops.max_pool(x, 3), (12, 12, 2), expected=(0, 0, 16 * 2 * 8, 0))
hand(
    "ops.average_pool",
    lambda x: ops.average_pool(x, (2, 3)),
    (12, 12, 2),
    expected=(0, 0, 24 * 2 * 6, 0),
)
hand(
    "AdaptiveMaxPooling1D",
    lambda x: L.AdaptiveMaxPooling1D(3)(x),
    (10, 2),
    expected=(0, 0, 2 * (12 - 3), 0),
)
hand(
    "AdaptiveAveragePooling2D",
    lambda x: L.AdaptiveAveragePooling2D((5, 4))(x),
    MAP,
    expected=(0, 0, 8 * 20 * 16, 0),
)
hand(
    "ops.adaptive_max_pool",
    lambda x: ops.adaptive_max_pool(x, (4, 4)),
    MAP,
    expected=(0, 0, 8 * (256 - 16), 0),
)
hand(
    "GlobalMaxPooling1D",
    lambda x: L.GlobalMaxPooling1D(data_format="channels_first")(x),
    (8, 10),
    expected=(0, 0, 8 * 9, 0),
)
hand(
    "BatchNormalization in training",
    lambda x: L.BatchNormalization()(x),
    MAP,
    training=True,
    expected=(0, 0, 6 * 2048 + 11 * 8, 8),
)
hand(
    "ops.batch_normalization",
    lambda x: ops.batch_normalization(x, ones(8), ones(8), -1, ones(8), ones(8)),
    MAP,
    expected=(0, 0, 2 * 2048 + 5 * 8, 8),
)
hand(
    "LayerNormalization",
    lambda x: L.LayerNormalization()(x),
    (10, 16),
    expected=(0, 0, 9 * N + 20, 10),
)
hand(
    "LayerNormalization, no scale",
    lambda x: L.LayerNormalization(scale=False)(x),
    (10, 16),
    expected=(0, 0, 7 * N + 30, 10),
)
hand(
    "LayerNormalization of both axes",
    lambda x: L.LayerNormalization(axis=[1, 2], center=False)(x),
    (10, 16),
    expected=(0, 0, 8 * N + 2, 1),
)
hand(
    "ops.layer_normalization",
    lambda x: ops.layer_normalization(x, ones(16), ones(16)),
    (10, 16),
    expected=(0, 0, 9 * N + 20, 10),
)
hand(
    "GroupNormalization",
    lambda x: L.GroupNormalization(4)(x),
    (6, 6, 8),
    expected=(0, 0, 6 * 288 + 8 + 24, 4),
)
hand(
    "GroupNormalization, no scale",
    lambda x: L.GroupNormalization(-1, scale=False)(x),
    (6, 6, 8),
    expected=(0, 0, 6 * 288 + 16 + 8 + 8, 8),
)
hand(
    "UnitNormalization of order 3",
    lambda x: ops.normalize(x, order=3),
    (10, 16),
    expected=(0, 0, 2 * N + 150 + 10, N + 10),
)
hand(
    "SpectralNormalization in training",
    lambda x: L.SpectralNormalization(L.Dense(3))(x),
    (6,),
    training=True,
    expected=(18 + 3 * 18 + 3, 3, 3 * 9 + 18, 2),
)
hand(
    "UpSampling2D bilinear",
    lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
    (4, 4, 3),
    expected=(0, 0, 9 * 192, 0),
)
hand("UpSampling2D nearest", lambda x: L.UpSampling2D(2)(x), (4, 4, 3), expected=(0, 0, 0, 0))
hand(
    "Resizing bicubic",
    lambda x: L.Resizing(8, 8, interpolation="bicubic")(x),
    (4, 4, 3),
    expected=(0, 0, 35 * 192, 0),
)
hand(
    "CenterCrop of a small image",
    lambda x: L.CenterCrop(8, 8)(x),
    (4, 4, 3),
    expected=(0, 0, 9 * 192, 0),
)
hand("Masking", lambda x: L.Masking()(x), (5, 3), expected=(0, 0, 2 * 15 + 10, 0))
SOFTMAX = 10 * (4 * 7 - 2)
hand(
    "Attention",
    lambda a, b: L.Attention(use_scale=True)([a, b]),
    (10, 16),
    (7, 16),
    expected=(2 * 1120, 0, 70 + SOFTMAX, 70),
)
hand(
    "Attention, causal, in training",
    lambda a: L.Attention(dropout=0.1)([a, a], use_causal_mask=True),
    (7, 16),
    training=True,
    expected=(2 * 784, 0, 7 * 26 + 2 * 49 + 2 * 49, 49),
)
hand(
    "Attention, concat",
    lambda a, b: L.Attention(score_mode="concat", use_scale=True)([a, b]),
    (10, 16),
    (7, 16),
    expected=(1120, 0, 70 * 48 + SOFTMAX, 70 * 17),
)
hand(
    "AdditiveAttention",
    lambda a, b: L.AdditiveAttention()([a, b]),
    (10, 16),
    (7, 16),
    expected=(1120, 0, 70 * 47 + SOFTMAX, 70 * 17),
)
HEADS = 40 * (4 * 10 - 2)
hand(
    "MultiHeadAttention",
    lambda a: L.MultiHeadAttention(4, 4)(a, a),
    (10, 16),
    expected=(13_440, 4 * N, 400 + HEADS, 400),
)
hand(
    "MultiHeadAttention, dropout",
    lambda a: L.MultiHeadAttention(4, 4, dropout=0.1)(a, a),
    (10, 16),
    training=True,
    expected=(13_440, 4 * N, N + HEADS + 800, 400),
)
hand(
    "MultiHeadAttention, causal",
    lambda a: L.MultiHeadAttention(4, 4)(a, a, use_causal_mask=True),
    (10, 16),
    expected=(13_440, 4 * N, 800 + HEADS, 400),
)
hand(
    "MultiHeadAttention, other sizes",
    lambda a, b: L.MultiHeadAttention(2, 3, value_dim=5, output_shape=7)(a, b),
    (10, 16),
    (6, 12),
    expected=(
        10 * 96 + 6 * 72 + 6 * 120 + 120 * 8 + 10 * 70,
        60 + 36 + 60 + 70,
        120 + 20 * 22,
        120,
    ),
)
hand(
    "MultiHeadAttention, gated",
    lambda a: L.MultiHeadAttention(4, 4, use_gate=True)(a, a),
    (10, 16),
    expected=(16_000, 5 * N, 400 + HEADS + 4 * N, 400 + N),
)
hand(
    "MultiHeadAttention over two axes",
    lambda a: L.MultiHeadAttention(4, 4, attention_axes=(1, 2))(a, a),
    (5, 4, 16),
    expected=(4 * 20 * 256 + 2 * 1600 * 4, 4 * 320, 320 + 80 * 79, 3280),
)
hand(
    "MultiHeadAttention over the second axis",
    lambda a: L.MultiHeadAttention(4, 4, attention_axes=(2,))(a, a),
    (5, 4, 16),
    expected=(20_480 + 5 * 4 * 16 * 8, 4 * 320, 320 + 80 * 14, 320),
)
hand(
    "GroupQueryAttention",
    lambda a: L.GroupQueryAttention(4, 4, 2)(a, a),
    (10, 16),
    expected=(13_440 - 2_560, 3 * N, 400 + HEADS, 400),
)
hand(
    "ops.dot_product_attention",
    lambda q, k: ops.dot_product_attention(q, k, k),
    (10, 4, 4),
    (10, 4, 4),
    expected=(3_200, 0, 400 + HEADS, 400),
)
hand(
    "SimpleRNN in training",
    lambda x: L.SimpleRNN(6, dropout=0.1, recurrent_dropout=0.1)(x),
    (3, 8),
    training=True,
    expected=(3 * 84, 18, 3 * (6 + 8 + 6), 18),
)
hand(
    "LSTM in training",
    lambda x: L.LSTM(6, dropout=0.1, recurrent_dropout=0.1, implementation=1)(x),
    (3, 8),
    training=True,
    expected=(3 * 336, 72, 3 * (102 + 32 + 24), 90),
)
hand(
    "ConvLSTM1D in training",
    lambda x: L.ConvLSTM1D(4, 3, padding="same", dropout=0.1, recurrent_dropout=0.1)(x),
    (3, 9, 2),
    training=True,
    expected=(3 * 9 * 3 * 16 * 6, 3 * 9 * 16, 3 * (17 * 36 + 4 * 18 + 4 * 36), 3 * 5 * 36),
)
hand(
    "Bidirectional, added",
    lambda x: L.Bidirectional(L.GRU(6), merge_mode="sum")(x),
    (3, 8),
    expected=(2 * 3 * 252, 2 * 3 * 36, 2 * 3 * 6 * 14 + 6, 54 * 2),
)
hand(
    "Pipeline",
    lambda x: L.Pipeline([L.Rescaling(2.0), L.Resizing(8, 8)])(x),
    (4, 4, 3),
    expected=(0, 0, 2 * 48 + 9 * 192, 0),
)
for kind, each in {
    "Dropout": 2,
    "GaussianDropout": 3,
    "AlphaDropout": 7,
    "GaussianNoise": 2,
}.items():
    hand(
        f"{kind} in training",
        lambda x, kind=kind: getattr(L, kind)(0.5)(x),
        (4, 5),
        training=True,
        expected=(0, 0, 20 * each, 0),
    )
    hand(kind, lambda x, kind=kind: getattr(L, kind)(0.5)(x), (4, 5), expected=(0, 0, 0, 0))
hand("RandomRotation", lambda x: L.RandomRotation(0.1)(x), (4, 4, 3), expected=(0, 0, 0, 0))
hand("Rescaling", lambda x: L.Rescaling(1 / 255)(x), (28, 28, 1), expected=(0, 0, 1568, 0))
hand(
    "Normalization",
    lambda x: L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 4.0])(x),
    (5, 3),
    expected=(0, 0, 33, 3),
)
hand(
    "CategoryEncoding",
    lambda x: L.CategoryEncoding(5, "multi_hot")(x),
    (3,),
    dtype="int32",
    expected=(0, 0, 25, 0),
)
hand(
    "Discretization, one-hot",
    lambda x: L.Discretization([0.0, 1.0, 2.0], output_mode="one_hot")(x),
    (4,),
    expected=(0, 0, 8 + 16, 0),
)
hand(
    "MelSpectrogram",
    lambda x: L.MelSpectrogram(fft_length=64, sequence_stride=32, num_mel_bins=10)(x),
    (256,),
    expected=(9 * 330, 0, 9 * 64 + 9 * 64 * 15 + 9 * 99 + 5 * 90 + 89, 9 * 66 + 90),
)
hand(
    "Embedding, low rank",
    low_rank_embedding,
    (5,),
    dtype="int32",
    expected=(5 * 4 * 2, 0, 2 * 20, 0),
)
hand("Embedding", lambda x: L.Embedding(9, 4)(x), (5,), dtype="int32", expected=(0, 0, 0, 0))
for name, each in {
    "ops.logaddexp": (5, 2),
    "ops.hypot": (3, 1),
    "ops.isclose": (6, 0),
    "ops.floor_divide": (2, 0),
    "ops.divide_no_nan": (2, 0),
}.items():
    hand(
        name,
        getattr(ops, name.removeprefix("ops.")),
        (4, 5),
        (4, 5),
        expected=(0, 0, 20 * each[0], 20 * each[1]),
    )
for name, (other, roots) in {
    "var": (256, 0),
    "std": (256, 4),
    "argmax": (60, 0),
    "logsumexp": (188, 68),
    "cumsum": (60, 0),
    "nancumsum": (124, 0),
    "sort": (256, 0),
    "median": (268, 0),
    "nanmedian": (332, 0),
    "any": (60, 0),
    "count_nonzero": (124, 0),
    "nanmax": (124, 0),
    "nanmean": (128, 0),
    "nanstd": (320, 4),
    "norm": (124, 4),
    "trapezoid": (124, 0),
}.items():
    hand(
        f"ops.{name}",
        lambda x, name=name: getattr(ops, name)(x, axis=-1),
        (4, 16),
        expected=(0, 0, other, roots),
    )
hand("ops.norm of order 1", lambda x: ops.norm(x, ord=1, axis=-1), (4, 16), expected=(0, 0, 124, 0))
hand(
    "ops.norm, largest",
    lambda x: ops.norm(x, ord=math.inf, axis=-1),
    (4, 16),
    expected=(0, 0, 124, 0),
)
hand(
    "ops.norm of Frobenius",
    lambda x: ops.norm(x, ord="fro", axis=(1, 2)),
    (4, 16),
    expected=(0, 0, 64 + 63, 1),
)
hand("ops.norm of all", lambda x: ops.norm(x), (4, 16), expected=(0, 0, 64 + 63, 1))
for order in ("nuc", 2, -2):
    hand(
        f"ops.norm of order {order} of a matrix",
        lambda x, order=order: ops.norm(x, ord=order, axis=(1, 2)),
        (4, 5),
        expected=None,
    )
hand(
    "ops.norm of order 1 of a matrix",
    lambda x: ops.norm(x, ord=1, axis=(1, 2)),
    (4, 5),
    expected=(0, 0, 39, 0),
)
hand("ops.norm, smallest", lambda x: ops.norm(x, ord=-1, axis=-1), (4, 16), expected=(0, 0, 124, 0))
hand("ops.norm of order 2", lambda x: ops.norm(x, ord=2, axis=-1), (4, 16), expected=(0, 0, 124, 4))
hand("ops.sort of one number", lambda x: ops.sort(x), (1,), expected=(0, 0, 0, 0))
hand("ops.sort of 9", lambda x: ops.sort(x), (9,), expected=(0, 0, 36, 0))
hand(
    "Resizing, antialiased", lambda x: L.Resizing(4, 4, antialias=True)(x), (8, 8, 3), expected=None
)
hand(
    "RandomRotation in training",
    lambda x: L.RandomRotation(0.1)(x),
    (4, 4, 3),
    training=True,
    expected=None,
)
hand(
    "ops.einsum of three",
    lambda a, b, c: ops.einsum("bi,bj,bk->bijk", a, b, c),
    (2,),
    (3,),
    (4,),
    expected=(0, 0, 6 + 24, 0),  # in pairs
)
hand(
    "ops.einsum of three, summed",
    lambda a, b, c: ops.einsum("bij,bjk,bkl->bil", a, b, c),
    (2, 6),
    (6, 3),
    (3, 8),
    expected=(2 * 6 * 3 + 2 * 3 * 8, 0, 0, 0),
)
hand(
    "ops.einsum of three, weights in it",
    lambda a: ops.einsum("bi,ij,jk->bk", a, keras.Variable(ones(6, 2)), ones(2, 5)),
    (6,),
    expected=(6 * 2 + 2 * 5, 0, 0, 0),
)
hand("ops.rfft of 12", lambda x: ops.rfft(x)[0], (12,), expected=None)
hand(
    "ops.norm of order 3", lambda x: ops.norm(x, ord=3, axis=-1), (4, 16), expected=(0, 0, 124, 68)
)
hand(
    "ops.average, weighted",
    lambda x: ops.average(x, axis=-1, weights=ones(16)),
    (4, 16),
    expected=(0, 0, 64 + 64 + 60, 0),
)
hand("ops.moments", lambda x: ops.moments(x, [-1])[0], (4, 16), expected=(0, 0, 256, 0))
hand("ops.dot", lambda x: ops.dot(x, ones(5, 7)), (4, 5), expected=(140, 0, 0, 0))
hand(
    "ops.dot with a number",
    lambda x: ops.dot(x, ops.convert_to_tensor(2.0)),
    (4, 5),
    expected=(0, 0, 20, 0),
)
hand(
    "ops.einsum, nothing summed",
    lambda a, b: ops.einsum("bij,bij->bij", a, b),
    (3, 4),
    (3, 4),
    expected=(0, 0, 12, 0),
)
hand(
    "ops.solve_triangular",
    lambda a, b: ops.solve_triangular(a, b),
    (4, 4),
    (4, 2),
    expected=(12, 0, 8, 0),
)
hand("ops.trace", lambda x: ops.trace(x, offset=1, axis1=1, axis2=2), (3, 5), expected=(0, 0, 2, 0))
hand("ops.unique", lambda x: ops.unique(x[0], size=8), (8,), expected=(0, 0, 24 + 7, 0))
hand("ops.digitize", lambda x: ops.digitize(x, np.arange(5.0)), (8,), expected=(0, 0, 24, 0))
hand("ops.searchsorted", lambda x: ops.searchsorted(x[0], ones(3)), (8,), expected=(0, 0, 12, 0))
hand("ops.isin", lambda x: ops.isin(x, ones(3)), (8,), expected=(0, 0, 24, 0))
hand("ops.allclose", lambda a: ops.allclose(a, a), (8,), expected=(0, 0, 55, 0))
hand(
    "ops.in_top_k",
    lambda t, p: ops.in_top_k(t[0], p[0], 2),
    (3,),
    (3, 5),
    dtype="int32",
    expected=(0, 0, 33, 0),
)
hand(
    "ops.multi_hot",
    lambda x: ops.multi_hot(x, num_classes=5),
    (3,),
    dtype="int32",
    expected=(0, 0, 25, 0),
)
hand("ops.histogram", lambda x: ops.histogram(x)[0], (8,), expected=(0, 0, 46, 0))
hand("ops.corrcoef", lambda x: ops.corrcoef(x[0]), (4, 6), expected=(96, 0, 48 + 80, 4))
hand("ops.vander", lambda x: ops.vander(x[0], 4), (5,), expected=(0, 0, 10, 0))
hand(
    "ops.scatter",
    lambda x: ops.scatter(np.array([[0], [1]]), x[0], (4,)),
    (2,),
    expected=(0, 0, 2, 0),
)
hand(
    "ops.scatter_update, added",
    lambda x: ops.scatter_update(x[0], np.array([[0]]), ones(1), reduction="add"),
    (4,),
    expected=(0, 0, 1, 0),
)
hand("ops.select", lambda x: ops.select([x > 0, x > 1], [x, x], 0.0), (8,), expected=(0, 0, 16, 0))
hand(
    "ops.binary_crossentropy of logits",
    lambda t, x: ops.binary_crossentropy(t, x, from_logits=True),
    (8,),
    (8,),
    expected=(0, 0, 88, 24),
)
hand(
    "ops.categorical_crossentropy of logits",
    lambda t, x: ops.categorical_crossentropy(t, x, from_logits=True),
    (8,),
    (8,),
    expected=(0, 0, 46, 9),
)
hand(
    "ops.sparse_categorical_crossentropy",
    lambda t, x: ops.sparse_categorical_crossentropy(t, x),
    (),
    (8,),
    expected=(0, 0, 16 + 16 + 7 + 1, 8),
)
hand("ops.resize", lambda x: ops.image.resize(x, (8, 8)), (4, 4, 3), expected=(0, 0, 9 * 192, 0))
hand("ops.rfft", lambda x: ops.rfft(x)[0], (8,), expected=(0, 0, 60, 0))
hand("ops.irfft", lambda x: ops.irfft((x, x)), (5,), expected=(0, 0, 60 + 8, 0))
hand("ops.fft", lambda x: ops.fft((x, x))[0], (8,), expected=(0, 0, 120, 0))
hand("ops.ifft2", lambda x: ops.ifft2((x, x))[0], (4, 8), expected=(0, 0, 4 * 120 + 8 * 40 + 64, 0))

# What the planted faults below would slip past: the other side of each condition.
for offset, terms in {0: 3, 3: 2, 4: 1, -1: 2}.items():
    hand(
        f"ops.trace, {offset} beside the diagonal",
        lambda x, at=offset: ops.trace(x, offset=at, axis1=1, axis2=2),
        (3, 5),
        expected=(0, 0, terms - 1, 0),
    )
hand(
    "LayerNormalization by the variance alone",
    lambda x: L.LayerNormalization(rms_scaling=True)(x),
    (10, 16),
    expected=(0, 0, 6 * N + 10, 10),
)
hand(
    "ops.layer_normalization, no shift",
    lambda x: ops.layer_normalization(x, ones(16)),
    (10, 16),
    expected=(0, 0, 8 * N + 20, 10),
)
hand(
    "UnitNormalization of order 1",
    lambda x: ops.normalize(x, order=1),
    (10, 16),
    expected=(0, 0, 2 * N + 150 + 10, 0),
)
if NEWEST:
    hand(
        "ReversibleEmbedding, capped",
        lambda x: L.ReversibleEmbedding(100, 8, logit_soft_cap=30.0)(x, reverse=True),
        (5, 8),
        expected=(4000, 0, 1000, 500),
    )
    hand(
        "ReversibleEmbedding, looked up",
        lambda x: L.ReversibleEmbedding(9, 4)(x),
        (5,),
        dtype="int32",
        expected=(0, 0, 0, 0),
    )
hand(
    "Bidirectional, multiplied",
    lambda x: L.Bidirectional(L.GRU(6), merge_mode="mul")(x),
    (3, 8),
    expected=(2 * 3 * 252, 2 * 3 * 36, 2 * 3 * 6 * 14 + 6, 54 * 2),
)
hand(
    "Bidirectional, two kinds beside each other",
    lambda x: L.Bidirectional(L.GRU(6), backward_layer=L.LSTM(6, go_backwards=True))(x),
    (3, 8),
    expected=(3 * (252 + 336), 3 * (36 + 24), 3 * (84 + 102), 54 + 90),
)
hand(
    "Attention with keys of their own",
    lambda q, v, k: L.Attention()([q, v, k]),
    (10, 16),
    (7, 5),
    (7, 16),
    expected=(1120 + 350, 0, SOFTMAX, 70),
)
hand(
    "MultiHeadAttention with keys of their own",
    lambda q, v, k: L.MultiHeadAttention(2, 3)(q, v, key=k),
    (4, 5),
    (6, 7),
    (6, 8),
    expected=(
        4 * 5 * 6 + 6 * 8 * 6 + 6 * 7 * 6 + 2 * 48 * 3 + 4 * 6 * 5,
        24 + 36 + 36 + 20,
        48 + 8 * 10 + 96,
        48,
    ),
)
hand(
    "MultiHeadAttention, gated, of two",
    lambda q, v: L.MultiHeadAttention(2, 3, use_gate=True)(q, v),
    (4, 5),
    (6, 7),
    expected=(
        2 * 4 * 5 * 6 + 2 * 6 * 7 * 6 + 2 * 48 * 3 + 4 * 6 * 5,
        24 + 36 + 36 + 24 + 20,
        48 + 8 * 10 + 96 + 4 * 24,
        48 + 24,
    ),
)
hand(
    "SimpleRNN from a given state",
    lambda x, state: L.SimpleRNN(3)(x, initial_state=state),
    (4, 5),
    (3,),
    expected=(4 * 15 + 4 * 9, 12, 12, 12),
)
hand(
    "ops.dot_product_attention, biased",
    lambda q, k: ops.dot_product_attention(q, k, k, ones(1, 4, 10, 10)),
    (10, 4, 4),
    (10, 4, 4),
    expected=(3_200, 0, 800 + HEADS, 400),
)
hand(
    "MultiHeadAttention, masked",
    lambda a: L.MultiHeadAttention(4, 4)(a, a, attention_mask=ones(1, 10, 10) > 0),
    (10, 16),
    expected=(13_440, 4 * N, 800 + HEADS, 400),
)
hand(
    "MultiHeadAttention, its scores too",
    lambda a: L.MultiHeadAttention(4, 4)(a, a, return_attention_scores=True)[0],
    (10, 16),
    expected=(13_440, 4 * N, N + HEADS, 400),
)
hand(
    "MultiHeadAttention, causal, its scores too",
    lambda a: L.MultiHeadAttention(4, 4)(a, a, return_attention_scores=True, use_causal_mask=True)[
        0
    ],
    (10, 16),
    expected=(13_440, 4 * N, N + HEADS + 800, 400),
)
hand(
    "ops.average, weights by position",
    lambda x: ops.average(x, -1, ones(16)),
    (4, 16),
    expected=(0, 0, 64 + 64 + 60, 0),
)
hand("ops.rfft of 2", lambda x: ops.rfft(x)[0], (2,), expected=(0, 0, 5, 0))
hand(
    "Resizing to a larger size, antialiased",
    lambda x: L.Resizing(8, 8, antialias=True)(x),
    (4, 4, 3),
    expected=(0, 0, 9 * 192, 0),
)
hand(
    "CenterCrop of a large image", lambda x: L.CenterCrop(2, 2)(x), (4, 4, 3), expected=(0, 0, 0, 0)
)
hand(
    "STFTSpectrogram, power",
    lambda x: L.STFTSpectrogram(
        "psd", frame_length=8, frame_step=4, fft_length=16, padding="valid"
    )(x),
    (32, 1),
    expected=(2 * 7 * 9 * 8, 0, 7 * 9 * (2 + 1 + 1), 0),
)
hand("ops.stft", lambda x: ops.stft(x, 8, 4, 8, center=False)[0], (16,), expected=(0, 0, 3 * 68, 0))


# ---------------------------------------------------------------- the comparisons
_KEPT = {}


def prepare(name):
    """A case's calls, whether in training, the figures expected, and how to take them from works;
    made once."""
    if name not in _KEPT:
        if name in CASES:
            function, shapes, dtype = CASES[name]
            _KEPT[name] = (calls_of(function, shapes, dtype)[1], False, RECORDED[name], as_xla)
        else:
            function, shapes, dtype, training, expected = HAND[name.removeprefix("by hand: ")]
            calls = [
                call
                for call in calls_of(function, shapes, dtype)[1]
                if call.kind not in ("ops.GetItem", "ops.Greater")
            ]
            _KEPT[name] = (calls, training, expected, as_counts)
    return _KEPT[name]


ALL = [*CASES, *(f"by hand: {name}" for name in HAND)]


def present(name):
    "Can this version of Keras build the case? The newest builds all."
    try:
        prepare(name)
    except (TypeError, AttributeError, ValueError):
        if NEWEST:
            raise
        return False
    return True


def prepared():
    "All cases that this version of Keras has."
    return {name: prepare(name) for name in ALL if present(name)}


def as_xla(works):
    "What XLA counts: two a MAC that is not on padding, one a bias, one an operation."
    flops = sum(2 * (work.macs - work.on_padding) + work.biases + work.other for work in works)
    return flops, sum(work.transcendental for work in works)


def as_counts(works):
    return tuple(
        sum(getattr(work, count) for work in works)
        for count in ("macs", "biases", "other", "transcendental")
    )


def agrees(name):
    found, expected = figures_of(name)
    return found == expected


def figures_of(name):
    "What is counted, and what is expected; None where something is not known."
    calls, training, expected, figures = prepare(name)
    works = [layer_work(call, training) for call in calls]
    return None if None in works else figures(works), expected and tuple(expected)


@pytest.mark.parametrize("name", ALL)
def test_formula(name):
    if not present(name):
        pytest.skip(f"Keras {keras.__version__} does not have it, or not like this")
    found, expected = figures_of(name)
    assert found == expected


@pytest.mark.slow
def test_xla_still_says_what_was_recorded():
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, check=True, capture_output=True, text=True
    )
    assert {name: tuple(figures) for name, figures in json.loads(done.stdout).items()} == RECORDED


# ---------------------------------------------------------------- a convolution of ones counts its
# own products


def random_convolution(draw):
    "A random layer of any kind of convolution, and the shape of its input."
    rank, kind = draw.randint(1, 3), draw.choice(("Conv", "Conv", "Transpose", "Depthwise"))
    rank = min(rank, 2) if kind == "Depthwise" else rank
    size = tuple(draw.randint(7, 11) for _ in range(rank))
    groups, channels = (
        draw.choice(((1, 3), (2, 4), (4, 4)))
        if kind == "Conv" and rank < 3
        else (1, draw.randint(1, 3))
    )
    dilation = draw.choice((1, 1, 2, 3))
    options = {
        "kernel_size": tuple(draw.randint(1, 3) for _ in range(rank)),
        "use_bias": False,
        "padding": draw.choice(
            ("valid", "same", "causal") if (kind, rank) == ("Conv", 1) else ("valid", "same")
        ),
    }
    if dilation == 1 or kind == "Transpose":
        options["strides"] = (
            draw.randint(1, 3)
            if kind == "Depthwise"
            else tuple(draw.randint(1, 3) for _ in range(rank))
        )
    else:
        options["dilation_rate"] = dilation
    if kind == "Depthwise":
        return getattr(L, f"DepthwiseConv{rank}D")(
            depth_multiplier=draw.randint(1, 2), **options
        ), (*size, channels)
    if kind == "Transpose":
        return getattr(L, f"Conv{rank}DTranspose")(draw.randint(1, 3), **options), (*size, channels)
    return getattr(L, f"Conv{rank}D")(groups * draw.randint(1, 2), groups=groups, **options), (
        *size,
        channels,
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_convolution_of_ones_counts_its_products(seed):
    layer, shape = random_convolution(random.Random(seed))
    batch = 1 + seed % 2
    (call,) = model_graph(keras.Sequential([keras.Input(shape), layer]), batch_size=batch).calls
    work = layer_work(call)
    layer.set_weights([np.ones(weight.shape, "float32") for weight in layer.weights])
    products = float(np.sum(ops.convert_to_numpy(layer(np.ones((batch, *shape), "float32")))))
    assert work.macs - work.on_padding == products
    size, output_size = shape[:-1], call.outputs[0].shape[1:-1]
    written = size if "Transpose" in call.kind else output_size
    assert work.macs == batch * math.prod(written) * math.prod(layer.kernel.shape)
    assert work.terms[0].weight is layer.kernel and work.macs % math.prod(layer.kernel.shape) == 0


# ---------------------------------------------------------------- mutants


class Mutation(ast.NodeTransformer):
    """Changes the one place with the given number: an integer, an operator, a comparison or a
    quantity."""

    OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult}
    COMPARISONS = {
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
        ast.Is: ast.IsNot,
        ast.IsNot: ast.Is,
        ast.Lt: ast.GtE,
        ast.Gt: ast.LtE,
    }
    QUANTITIES = {"macs": "other", "biases": "other"}

    def __init__(self, number):
        self.number, self.places = number, 0

    def here(self):
        self.places += 1
        return self.places - 1 == self.number

    def visit_Constant(self, node):
        if type(node.value) is int and self.here():
            return ast.Constant(node.value + 1)
        if node.value in self.QUANTITIES and self.here():
            return ast.Constant(self.QUANTITIES[node.value])
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if type(node.op) in self.OPERATORS and self.here():
            node.op = self.OPERATORS[type(node.op)]()
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if type(node.ops[0]) in self.COMPARISONS and self.here():
            node.ops[0] = self.COMPARISONS[type(node.ops[0])]()
        return node


def mutants(function):
    "Compiled versions of a function, each with one change."
    source = textwrap.dedent(inspect.getsource(function))
    number = 0
    while True:
        tree = ast.parse(source)
        tree.body[0].decorator_list = []
        change = Mutation(number)
        tree.body[0].body = [change.visit(part) for part in tree.body[0].body]
        if change.places <= number:
            return
        space = dict(function.__globals__)
        exec(
            compile(
                ast.fix_missing_locations(tree), f"<mutant {number} of {function.__name__}>", "exec"
            ),
            space,
        )
        yield types.FunctionType(
            space[function.__name__].__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
        )
        number += 1


def gradients(name):
    """MACs of the gradients of each call with nothing trainable before it, and with something
    before each of its inputs in turn; then the same with all weights frozen.
    `test_training_cost` puts them beside PyTorch's."""
    calls, training, *_ = prepare(name)
    found = []
    for call in calls:
        work, inputs = layer_work(call, training), range(len(call.inputs))
        terms = [term for term in work.terms if term.quantity == "macs"] if work else []
        learned = [weight for weight in call.weights if weight.trainable]
        for learns in (True, False):
            for weight in learned:
                weight.trainable = learns
            for needed in (None, *inputs):
                found.append([term.gradients(tuple(k == needed for k in inputs)) for term in terms])
        for weight in learned:
            weight.trainable = True
    return found


def caught(names, known):
    for name in names:
        try:
            if not agrees(name) or gradients(name) != known[name]:
                return True
        except Exception:
            return True
    return False


HELPERS = (
    "_hits",
    "_in_front",
    "_taps",
    "_window_term",
    "_depthwise_term",
    "_softmax_terms",
    "_softmax_of_several",
    "_sorting",
    "_vector_terms",
    "_each_number",
    "_gates",
    "_scores_terms",
    "_heads",
    "_projection",
    "_einsum_terms",
    "_pool_terms",
    "_moments_terms",
    "_rows",
    "_fourier",
    "_encoding",
    "_interpolated",
    # fmt: skip
    "_after_kernel",
    "positions_and_channels",
    "_reduced",
    "_along",
    "_products",
)
# the rooms that hold a formula, by family of layers
ROOMS = (
    activations,
    convolutions,
    functions,
    normalizations,
    ordering_functions,
    other_layers,
    products,
    recurrent,
)
HANDLER_NAMES = sorted(
    {
        handler.__name__
        for handler in HANDLERS.values()
        if handler.__module__ in {room.__name__ for room in ROOMS}
    }
)


def rooms_with(name):
    "The rooms that look a function up by this name, and the function: the same one in all."
    found = [(room, vars(room)[name]) for room in ROOMS if name in vars(room)]
    assert found and all(function is found[0][1] for _, function in found), name
    return [room for room, _ in found], found[0][1]


newest = pytest.mark.skipif(
    not NEWEST, reason="not every case can be built on this version of Keras"
)


# How many faults of a function may slip past. Most of them change nothing: the name of a keyword
# that Keras passes by position, a symbol in
# place of another of the same size, the shape that an activation is given and does not count by. No
# other function may let one through.
SLIPS = {
    "_adaptive_pooling": 1, "_after_kernel": 1, "_attention": 4, "_auto_contrast": 2,
    "_batch_normalization_operation": 1, "_bisection": 3,
    "_category_encoding": 4, "_conv_lstm_cell": 4, "_convolution_operation": 1, "_correlate": 1,
    "_depthwise_operation": 3, "_dot_product_attention": 2,
    "_einsum_terms": 2, "_encoding": 1, "_fixed_filters": 3, "_fourier": 2, "_fourier_operation": 3,
    "_gates": 1, "_group_normalization": 1,
    "_gru_cell": 1, "_heads": 6, "_hits": 1, "_in_front": 2, "_lstm_cell": 2, "_matrix_product": 2,
    "_mean": 1, "_mel_spectrogram": 1,
    "_norm": 3, "_pairs": 3, "_peak_signal": 2, "_reversible_embedding": 2, "_rms_normalization": 2,
    "_scatter": 1, "_select": 1,
    "_softmax_layer": 3, "_softmax_terms": 1, "_solve_triangular": 1, "_sort": 1,
    "_stacked_cells": 3, "_time_distributed": 1, "_trace": 1,
    "_unit_normalization": 1, "_various": 1, "_vector_terms": 1, "_window_term": 1,
}  # fmt: skip


@newest
@pytest.mark.parametrize("name", [*HANDLER_NAMES, *HELPERS])
def test_planted_faults_are_caught(name, monkeypatch):
    rooms, original = rooms_with(name)
    kinds = [kind for kind, handler in HANDLERS.items() if handler is original]
    relevant = [case for case, (calls, *_) in prepared().items() if not kinds or uses(calls, kinds)]
    assert relevant, f"no case for {name}"
    missed, total, known = [], 0, {name: gradients(name) for name in relevant}
    for number, mutant in enumerate(mutants(inspect.unwrap(original))):
        with monkeypatch.context() as patch:
            for room in rooms:
                patch.setattr(room, name, mutant)
            for kind in kinds:
                patch.setitem(HANDLERS, kind, mutant)
            total += 1
            if not caught(relevant, known):
                missed.append(number)
    MUTANTS[name] = (total, missed)
    assert total == 0 or len(missed) < total, f"no fault in {name} was caught"
    assert len(missed) <= SLIPS.get(name, 0), (
        f"{name}: {len(missed)} of {total} faults were not caught: {missed}"
    )


MUTANTS = {}


def uses(calls, kinds):
    "Does one of the calls, or a layer inside it, belong to these kinds?"
    inside = {
        type(part).__name__
        for call in calls
        if hasattr(call.layer, "_flatten_layers")
        for part in call.layer._flatten_layers()
    }
    return bool(({call.kind for call in calls} | inside) & set(kinds))


def test_mutants_caught():
    "The sum over all functions; run after the tests above."
    if len(MUTANTS) < len(HANDLER_NAMES):
        pytest.skip("the mutants were not all made")
    total, missed = sum(t for t, _ in MUTANTS.values()), sum(len(m) for _, m in MUTANTS.values())
    print(f"{total - missed} of {total} planted faults caught in {len(MUTANTS)} functions")
    # some change nothing that is counted
    assert missed <= 0.11 * total, {name: (t, m) for name, (t, m) in MUTANTS.items() if m}


@newest
def test_every_handler_has_a_case():
    seen = {
        kind
        for calls, *_ in prepared().values()
        for call in calls
        for kind in (call.kind, *inner(call.layer))
    }
    handlers = {HANDLERS[kind] for kind in seen if kind in HANDLERS}
    assert {handler.__name__ for handler in HANDLERS.values()} - {
        handler.__name__ for handler in handlers
    } == set()


def inner(layer):
    return (
        {type(part).__name__ for part in layer._flatten_layers()}
        if hasattr(layer, "_flatten_layers")
        else set()
    )


# ---------------------------------------------------------------- nothing is forgotten, and nobody
# is taken for another


def test_every_layer_of_keras_is_counted_free_or_named():
    public = [getattr(L, name) for name in dir(L)]
    kinds = {
        kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, L.Layer)
    }
    assert kinds - HANDLERS.keys() - FREE - UNKNOWN.keys() == set()
    assert not (HANDLERS.keys() & FREE or HANDLERS.keys() & UNKNOWN.keys() or FREE & UNKNOWN.keys())
    assert all(UNKNOWN.values())


class Same(L.Dense):
    def build(self, input_shape):
        super().build(input_shape)


class Dense(L.Layer):
    "Bears a known name."

    def call(self, inputs):
        return inputs


class Mixin:
    def call(self, inputs):
        return inputs


class Mixed(Mixin, L.Dense):
    pass


class OwnConvolution(L.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, 2 * kernel)


def test_subclasses():
    assert is_known(Same(3)) and not any(
        is_known(layer) for layer in (Dense(), Mixed(3), OwnConvolution(3, 3), keras.Sequential())
    )
    (call,) = model_graph(keras.Sequential([keras.Input((4,)), Same(3)])).calls
    assert layer_work(call).macs == 12


def test_a_registered_layer_wins_over_its_parent_and_can_be_registered_again():
    class Odd(L.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    assert not is_known(Odd(3))
    register_handler(Odd, lambda call, training=False: Work((Term("other", "odd", (("n", 7),)),)))
    (call,) = model_graph(keras.Sequential([keras.Input((4,)), Odd(3)]), opaque=is_known).calls
    assert layer_work(call).other == 7
    register_handler(Odd, lambda call, training=False: Work())
    assert layer_work(call) == Work()


@pytest.mark.parametrize("activation", [lambda x: x, keras.layers.Lambda(lambda x: x)])
def test_an_unknown_activation_is_said_and_not_zero(activation):
    (call,) = model_graph(
        keras.Sequential([keras.Input((4,)), L.Dense(3, activation=activation)])
    ).calls
    work = layer_work(call)
    assert work.macs == 12 and len(work.unknown) == 1 and work.unknown[0].startswith("activation")


def test_a_layer_as_activation_is_counted():
    (call,) = model_graph(
        keras.Sequential([keras.Input((4,)), L.Dense(3, activation=L.LeakyReLU())])
    ).calls
    assert layer_work(call).other == 9 and not layer_work(call).unknown


def test_what_is_unknown_inside_a_layer_is_named():
    class Cell(L.Layer):
        state_size = output_size = 3

        def call(self, inputs, states):
            return states[0], states

    calls = list(
        model_graph(
            keras.Sequential(
                [
                    keras.Input((5, 3)),
                    L.RNN(Cell()),
                    L.Reshape((3, 1)),
                    L.TimeDistributed(L.Lambda(lambda x: x)),
                ]
            )
        ).calls
    )
    cell, reshape, steps = (layer_work(call) for call in calls)
    assert cell == reshape == Work()  # it hands its states on
    assert len(steps.unknown) == 1 and steps.unknown[0].endswith("a Lambda")


def test_low_rank_updates_and_quantized_layers():
    layer = L.Dense(6)
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.enable_lora(2)
    (call,) = model_graph(model).calls
    assert (layer_work(call).macs, layer_work(call).other) == (48 + 8 * 2 * 6, 2 * 48)
    layer = L.Dense(6)
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.quantize("int8")
    (call,) = model_graph(model).calls
    assert layer_work(call).macs == 48 and layer_work(call).unknown == ("quantization",)


@pytest.mark.parametrize("batch", [1, 3])
def test_work_grows_with_the_batch(batch):
    image = keras.Input((8, 8, 4))
    heads = L.MultiHeadAttention(2, 4)
    tokens = L.Reshape((-1, 6))(L.Conv2D(6, 3, padding="same", activation="gelu")(image))
    model = keras.Model(image, L.LSTM(5)(L.LayerNormalization()(heads(tokens, tokens))))
    one, many = (
        [layer_work(call) for call in model_graph(model, batch_size=size).calls]
        for size in (1, batch)
    )
    for first, second in zip(one, many):
        for count in ("macs", "biases", "other", "transcendental", "on_padding"):
            assert getattr(second, count) == batch * getattr(first, count)


def test_derivations_are_balanced_latex():
    for calls, training, *_ in prepared().values():
        for call in calls:
            for term in (layer_work(call, training) or Work()).terms:
                for text in (term.latex(), term.latex_numbers()):
                    assert (
                        text
                        and text.count("{") == text.count("}")
                        and not text.startswith(r" \cdot")
                    )
                assert isinstance(term.value, int) and 0 <= term.on_padding <= term.value
