"""What the `call` of a user's layer does besides computing its answer: it hides nothing from the
count, and counting leaves the model as it was."""
import keras
import numpy as np
import pytest
import tensorflow as tf

from fashion_nb.analysis.cost import CostError, model_cost


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


def report_of(layer, shape, **options):
    "Of a network of one layer."
    image = keras.Input(shape)
    return model_cost(keras.Model(image, layer(image)), **options)


class Mixture(keras.layers.Layer):
    "Lines of TensorFlow that Keras has words for, between two dense layers."

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(8), keras.layers.Dense(4)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((shape[0], 8))

    def call(self, x):
        y = tf.nn.relu(self.first(x)) * tf.nn.sigmoid(x[:, :1])
        y = tf.concat([y[:, :4], tf.reshape(y[:, 4:], [tf.shape(y)[0], -1])], axis=-1)
        y = y - tf.reduce_mean(y, axis=-1, keepdims=True)
        product = tf.matmul(self.second(y), tf.transpose(y[:, :4]))
        return product + tf.einsum("bi,bj->ij", y, y)[:3, :1]


def test_lines_of_tensorflow_are_said_in_keras():
    report = report_of(Mixture(), (6,), batch_size=3, strict=True)
    kinds = [row.kind for row in report.layers]
    assert report.total.macs == 3 * (6 * 8 + 8 * 4) + 3 * 4 * 3 + 3 * 8 * 8
    for kind in ("Relu", "Sigmoid", "Concatenate", "Reshape", "Mean", "Transpose", "Einsum"):
        assert f"ops.{kind}" in kinds
    elementwise = report.total.elementwise
    assert elementwise == report_of(Spoken(), (6,), batch_size=3).total.elementwise > 0


class Spoken(Mixture):
    "The same in Keras's words."

    def call(self, x):
        ops = keras.ops
        y = ops.relu(self.first(x)) * ops.sigmoid(x[:, :1])
        y = ops.concatenate([y[:, :4], ops.reshape(y[:, 4:], (-1, 4))], axis=-1)
        y = y - ops.mean(y, axis=-1, keepdims=True)
        product = ops.matmul(self.second(y), ops.transpose(y[:, :4]))
        return product + ops.einsum("bi,bj->ij", y, y)[:3, :1]


class Foreign(keras.layers.Layer):
    "A line that Keras has no word for."

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3, padding="same")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return self.conv(tf.image.adjust_contrast(x, 2.0))


def test_a_foreign_line_is_marked_and_all_else_is_counted():
    report = report_of(Foreign(), (8, 8, 3))
    assert report.total.macs == 8 * 8 * 4 * 27
    (line,) = report.unknown
    assert report[line].kind == "tf.image.adjust_contrast"
    assert report[line].note.startswith("a function of TensorFlow")
    with pytest.raises(CostError, match="adjust_contrast"):
        report_of(Foreign(), (8, 8, 3), strict=True)


class Leaving(keras.layers.Layer):
    "Hands a tensor to a function that takes no symbolic ones, between two layers."

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(8), Regular()

    def build(self, shape):
        self.first.build(shape)
        self.second.dense.build((shape[0], 8))
        self.second.built = True

    def call(self, x):
        y = self.first(x)
        if isinstance(y, keras.KerasTensor):
            raise TypeError("cannot be followed here\nnor there")
        return self.second(y)


class LeavingModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.inside = Leaving()
        self.head = keras.layers.Dense(2)

    def call(self, x):
        y = self.inside(x)
        if isinstance(y, keras.KerasTensor):
            raise TypeError("nor here")
        return self.head(y)


@pytest.mark.parametrize("training", [False, True])
def test_the_layers_of_a_call_that_cannot_be_followed_are_counted(training):
    layer = Leaving()
    report = report_of(layer, (6,), training=training)
    macs = {row.name.rpartition("/")[2]: row.macs for row in report.layers if row.macs}
    times = 2 if training else 1  # the input of the second may need a gradient too: a lower bound
    assert list(macs.values()) == [times * 48, times * 64]
    (rest,) = report.unknown
    assert rest == layer.name
    assert "cannot be followed (cannot be followed here)" in report[rest].note
    assert report.total.params == 6 * 8 + 8 + 8 * 8 + 8 + 1
    assert report.total.output_shape == (8,)


def test_a_model_is_not_refused_for_one_line():
    model = LeavingModel()
    model(np.zeros((1, 6), "float32"))
    report = model_cost(model)
    assert report.total.macs == 48 + 64 + 16 and len(report.unknown) == 2
    assert report.total.params == model.count_params()
    assert [row.kind for row in report.layers if row.macs] == ["Dense"] * 3


class AtOnce(keras.layers.Layer):
    "Computes with two weights, in TensorFlow's words."

    def build(self, shape):
        self.a, self.b = self.add_weight(shape=(6, 2)), self.add_weight(shape=(2, 5))

    def call(self, x):
        return keras.ops.matmul(x, tf.matmul(self.a, self.b))


class Scalar(AtOnce):
    "A single number is no work that anybody counts."

    def call(self, x):
        return keras.ops.matmul(x, self.a) / tf.sqrt(tf.cast(x.shape[-1], "float32"))


def test_tensorflows_work_on_weights_is_not_zero_in_silence():
    report = report_of(AtOnce(), (6,))
    assert report.total.macs == 30 and len(report.unknown) == 1
    assert "weights and arrays" in report[report.unknown[0]].note
    assert not report_of(Scalar(), (6,)).unknown


class Idle(AtOnce):
    "Computes something that it does not return."

    def call(self, x):
        tf.matmul(self.a, self.b)
        return x


def test_a_mark_is_not_put_on_the_call_before():
    image = keras.Input((6,))
    model = keras.Model(image, Idle()(keras.layers.Dense(6)(image)))
    assert not model_cost(model, strict=True).unknown
