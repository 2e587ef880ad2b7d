"""The counts on networks that nobody chose, and on what is no network."""
import math
import random

import pytest

import keras
from fashion_nb.cost import CostError, model_cost
from fashion_nb.oracles import keras_flops_count
from keras import layers


def random_chain(seed):
    "A random Sequential model of the layers that the table knows."
    draw = random.Random(seed)
    stack = [keras.Input((draw.randint(9, 20), draw.randint(9, 20), draw.choice((1, 2, 4))))]
    for _ in range(draw.randint(1, 4)):
        kernel = (draw.randint(1, 3), draw.randint(1, 3))
        strides = draw.choice((1, 1, (1, 2), 2))
        stack.append(
            draw.choice(
                (
                    lambda: layers.Conv2D(
                        draw.choice((4, 8)),
                        kernel,
                        strides=strides,
                        padding="same",
                        activation=draw.choice((None, "relu")),
                        use_bias=draw.random() < 0.5,
                    ),
                    lambda: layers.BatchNormalization(),
                    lambda: layers.MaxPooling2D(draw.choice((1, 2)), padding="same"),
                    lambda: layers.AveragePooling2D((1, 2), padding="same"),
                    lambda: layers.Rescaling(0.5, offset=draw.choice((0, 1))),
                    lambda: layers.ReLU(),
                    lambda: layers.Dropout(0.5),
                    lambda: layers.Dense(draw.randint(1, 6), use_bias=draw.random() < 0.5),
                )
            )()
        )
    if draw.random() < 0.7:
        stack += [layers.Flatten(), layers.Dense(5, activation=draw.choice((None, "softmax")))]
    return keras.Sequential(stack)


@pytest.mark.parametrize("seed", range(40))
def test_random_chains_against_keras_and_keras_flops(seed):
    model = random_chain(seed)
    report = model_cost(model, "profiler")
    assert report.total.params == model.count_params()
    assert report.total.flops == keras_flops_count(model)
    for layer, row in zip(model.layers, report.layers):
        assert row.output_shape == tuple(layer.output.shape[1:])


@pytest.mark.parametrize("seed", range(5))
def test_the_conventions_differ_by_what_they_say(seed):
    model = random_chain(seed)
    one, two = (model_cost(model, name).total for name in ("one_per_mac", "two_per_mac"))
    biases = sum(
        math.prod(row.output_shape)
        for layer, row in zip(model.layers, model_cost(model).layers)
        if getattr(layer, "use_bias", False)
    )
    assert one.macs == two.macs
    assert two.flops - one.flops == two.macs
    assert one.flops == one.macs + biases


def test_channels_first_counts_the_same():
    def net(data_format, shape):
        return keras.Sequential([keras.Input(shape), layers.Conv2D(6, 3, data_format=data_format)])

    assert (
        model_cost(net("channels_last", (9, 8, 4))).total.macs == model_cost(net("channels_first", (4, 9, 8))).total.macs == 7 * 6 * 6 * 9 * 4
    )


def functional():
    image = keras.Input((8, 8, 1))
    return keras.Model(image, layers.Add()([layers.Conv2D(2, 3)(image), layers.Conv2D(2, 3)(image)]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: None, "cannot count NoneType"),
        (lambda: layers.Dense(3), "cannot count Dense: expected a Keras model"),
        (lambda: keras.Sequential(), "is not built"),
        (lambda: keras.Sequential([layers.Conv2D(2, 3)]), "is not built"),
        (lambda: keras.Sequential([keras.Input((None, 8, 1)), layers.Conv2D(2, 3)]), "expected fixed sizes"),
        (functional, "is not Sequential"),
        (lambda: keras.Sequential([keras.Input((4, 4)), layers.LSTM(3)]), "a LSTM: expected one of"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="gelu")]), "activation 'gelu'"),
        (lambda: keras.Sequential([keras.Input((4,)), keras.Sequential([layers.Dense(3)])]), "a Sequential: expected one of"),
    ],
)
def test_what_cannot_be_counted_is_named(model, message):
    with pytest.raises(CostError) as error:
        model_cost(model())
    assert message in str(error.value) and "\n" not in str(error.value)
