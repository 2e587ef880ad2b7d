"""Attention whose query, keys or values are weights, as a Perceiver's latents or a memory: costs
against keras-flops, fields against a change of each place of the input."""
import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from fashion_nb.analysis.cost import model_cost
from fashion_nb.analysis.field import receptive_field
from fashion_nb.checks.keras_flops import keras_flops_count
from fashion_nb.checks.verify import verify_cost

STEPS, LATENTS, WIDTH = 10, 5, 8
KINDS = {
    "MultiHeadAttention": lambda: L.MultiHeadAttention(2, 4),
    "GroupQueryAttention": lambda: L.GroupQueryAttention(4, 2, 1),
}


class OfWeights(L.Layer):
    "Attention between the input and a table of weights."

    def __init__(self, kind, place, **options):
        super().__init__(**options)
        self.inner, self.place = KINDS[kind](), place

    def build(self, shape):
        self.table = self.add_weight(shape=(1, LATENTS, WIDTH), initializer="uniform")
        shapes = self.parts(tuple(shape), tuple(self.table.shape))
        self.inner.build(*shapes)

    def parts(self, given, table):
        "Query, value and, where it is one of its own, key."
        return {
            "query": (table, given), "value": (given, table), "key": (given, given, given),
        }[self.place]  # fmt: skip

    def call(self, x):
        if self.place == "key":  # as many keys as values
            return self.inner(x, x, key=ops.broadcast_to(self.table[:, :1], (1, STEPS, WIDTH)))
        return self.inner(*self.parts(x, self.table))


def model(kind, place):
    image = keras.Input((STEPS, WIDTH))
    return keras.Model(image, OfWeights(kind, place, name="of_weights")(image))


def seen(net):
    "For each place of the output the places of the input whose change changes it."
    random = np.random.default_rng(0)
    plain = random.normal(size=(1, STEPS, WIDTH)).astype("float32")
    before, found = np.asarray(net(plain))[0], []
    for place in range(STEPS):
        other = plain.copy()
        other[0, place] += random.normal(size=WIDTH)
        found.append(np.abs(np.asarray(net(other))[0] - before).max(axis=-1) > 1e-7)
    return np.array(found).T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["query", "value"])
def test_costs_and_fields(kind, place):
    net = model(kind, place)
    assert model_cost(net, "profiler").total.flops == keras_flops_count(net)
    assert verify_cost(net).ok
    report = receptive_field(net).layers[-1]
    assert report.exact
    sizes = {
        int(np.flatnonzero(row)[-1] - np.flatnonzero(row)[0] + 1) for row in seen(net) if row.any()
    }
    assert sizes == {report.size[0]} == {STEPS if place == "query" else 1}


def test_keys_that_are_weights():
    "The values come from the input, so every query sees all of them."
    net = model("MultiHeadAttention", "key")
    assert seen(net).all() and receptive_field(net).layers[-1].size == (STEPS,)
