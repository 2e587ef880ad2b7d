"""What the `call` of a user's layer does besides computing its answer: it hides nothing from the
count, and counting leaves the model as it was."""
import keras
import numpy as np
import pytest

from fashion_nb.analysis.cost import model_cost


class Regular(keras.layers.Layer):
    "A dense layer that adds a loss and counts how often it was called."

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(8)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        y = self.dense(x)
        self.add_loss(keras.ops.mean(keras.ops.square(y)))
        self.count.assign_add(1.0)
        return y


class Regularized(keras.Model):
    def __init__(self):
        super().__init__()
        self.part = Regular()

    def call(self, x):
        y = self.part(x)
        self.add_loss(keras.ops.sum(y))
        return y


@pytest.mark.parametrize("whole", [False, True])
def test_losses_and_assignments_hide_nothing_and_change_nothing(whole):
    image = keras.Input((6,))
    layer = Regular()
    model = Regularized() if whole else keras.Model(image, layer(image))
    if whole:
        layer = model.part
        model(np.zeros((1, 6), "float32"))
    before = float(layer.count.value)
    report = model_cost(model, strict=True)
    assert report.total.macs == 48 and not report.unknown
    assert float(layer.count.value) == before
    layer.count.assign(5.0)  # and assigning works again
    assert float(layer.count.value) == 5.0
