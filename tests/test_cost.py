"""The report on models that nobody chose, its options, its files, and what is no model."""

import csv
import io
import json
import math
import random
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from benchmark_cost import against_keras_flops, best, chain
from keras import layers

from fashion_nb.analysis.cost import bit_operations, compare_costs, model_cost
from fashion_nb.analysis.operations import register_handler
from fashion_nb.analysis.report import CONVENTIONS
from fashion_nb.analysis.roofline import Device, plot_costs, plot_roofline, roofline
from fashion_nb.analysis.terms import CostError, Term, Work
from fashion_nb.checks.keras_flops import keras_flops_count
from fashion_nb.models.zoo import build_model


def branching():
    """Two branches of unequal depth, a shared layer, a normalization that can be folded, two
    outputs."""
    image = keras.Input((12, 12, 4), name="image")
    shared = layers.Conv2D(4, 3, padding="same", use_bias=False, name="shared")
    left = layers.ReLU(name="relu")(
        layers.BatchNormalization(name="norm")(
            layers.Conv2D(4, 1, use_bias=False, name="one")(image)
        )
    )
    right = shared(shared(image))
    merged = layers.Add(name="sum")([left, right])
    return keras.Model(
        image, [merged, layers.GlobalAveragePooling2D(name="mean")(merged)], name="branching"
    )


def test_the_total_is_the_sum_of_the_rows():
    for convention in CONVENTIONS:
        report = model_cost(branching(), convention)
        for count in (
            "params",
            "trainable",
            "macs",
            "biases",
            "elementwise",
            "flops",
            "activations",
            "bytes_read",
            "bytes_written",
        ):
            assert getattr(report.total, count) == sum(getattr(row, count) for row in report.layers)
        assert report.total.memory == max(row.memory for row in report.layers)


def test_shared_weights_count_once_and_work_at_each_call():
    report = model_cost(branching())
    first, second = report["shared"], report["shared#2"]
    assert (first.params, second.params) == (9 * 4 * 4, 0)
    assert first.macs == second.macs == 144 * 4 * 9 * 4
    assert report.total.params == branching().count_params()


def test_weights_that_no_call_shows_are_still_parameters():
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale, self.spare = self.add_weight(
                shape=(shape[-1],), name="scale"
            ), self.add_weight(shape=(5,), name="spare")

        def call(self, inputs):
            return inputs * self.scale

    start = keras.Input((7,))
    model = keras.Model(start, Scale(name="scale")(start))
    report = model_cost(model, "everything")
    assert report.total.params == model.count_params() == 12
    assert {row.name: row.params for row in report.layers} == {
        "scale/multiply": 7,
        "(in no call)": 5,
    }
    assert report.total.flops == 7


# ---------------------------------------------------------------- options


def test_folding_equals_the_model_without_normalization():
    def net(normalize):
        image = keras.Input((9, 9, 3))
        features = layers.Conv2D(5, 3, use_bias=not normalize)(image)
        return keras.Model(
            image, layers.ReLU()(layers.BatchNormalization()(features) if normalize else features)
        )

    for convention in ("two_per_mac", "one_per_mac", "everything"):
        folded, plain = (
            model_cost(net(True), convention, fold_batch_norm=True).total,
            model_cost(net(False), convention).total,
        )
        for count in (
            "params",
            "trainable",
            "macs",
            "biases",
            "elementwise",
            "flops",
            "memory",
            "bytes_read",
            "bytes_written",
        ):
            assert getattr(folded, count) == getattr(plain, count), count


def test_folded_network_computes_the_same():
    "What the option assumes is true: the normalization disappears into kernel and bias."
    chance = np.random.default_rng(0)
    image = keras.Input((6, 6, 2))
    conv, norm = layers.Conv2D(3, 3, use_bias=False), layers.BatchNormalization()
    model = keras.Model(image, norm(conv(image)))
    norm.set_weights([chance.uniform(0.5, 2, 3).astype("float32") for _ in range(4)])
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    folded = layers.Conv2D(3, 3)
    folded.build((None, 6, 6, 2))
    folded.set_weights([conv.get_weights()[0] * scale, beta - mean * scale])
    pixels = chance.normal(size=(2, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(model(pixels), folded(pixels), rtol=1e-4, atol=1e-5)


def test_taps_on_padding_are_those_that_a_loop_finds():
    side, kernel, stride = 7, 3, 2
    model = keras.Sequential(
        [keras.Input((side, side, 2)), layers.Conv2D(4, kernel, strides=stride, padding="same")]
    )
    places = math.ceil(side / stride)
    front = max((places - 1) * stride + kernel - side, 0) // 2
    inside = sum(
        0 <= place * stride - front + tap < side for place in range(places) for tap in range(kernel)
    )
    assert model_cost(model, padding_taps="skipped").total.macs == inside**2 * 2 * 4
    assert model_cost(model).total.macs == (places * kernel) ** 2 * 2 * 4


def test_zero_weights_are_found_one_by_one():
    model = build_model("stride_2")
    kernel = model.get_layer("conv3").kernel
    values = np.ones(kernel.shape, "float32")
    values[0, 0, :, 0] = 0  # forty weights, used at 25 positions each
    kernel.assign(values)
    assert (
        model_cost(model).total.macs - model_cost(model, zero_weights="skipped").total.macs
        == 40 * 25
    )


def test_batches_scale_work_and_activations_but_not_weights():
    one, many = (model_cost(branching(), batch_size=size).total for size in (1, 9))
    for count in ("macs", "flops", "activations", "memory", "bytes_written"):
        assert getattr(many, count) == 9 * getattr(one, count)
    assert one.params == many.params and many.bytes_read < 9 * one.bytes_read


def test_training_needs_no_gradient_before_the_first_trainable_weight():
    model = build_model("stride_2")
    whole = model_cost(model, training=True)
    model.get_layer("conv1").trainable = model.get_layer("conv2").trainable = False
    frozen = model_cost(model, training=True)
    assert [
        frozen[name].macs / model_cost(model)[name].macs
        for name in ("conv1", "conv2", "conv3", "dense1")
    ] == [1, 1, 2, 3]
    assert [
        whole[name].macs / model_cost(model)[name].macs
        for name in ("conv1", "conv2", "conv3", "dense1")
    ] == [2, 3, 3, 3]


def test_narrower_numbers_move_fewer_bytes():
    def net(policy):
        stack = [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, dtype=policy),
            layers.ReLU(dtype=policy),
        ]
        return model_cost(keras.Sequential(stack)).total

    full, half = net("float32"), net("float16")
    assert (
        half.memory * 2 == full.memory
        and half.macs == full.macs
        and half.bytes_written * 2 == full.bytes_written
    )


def test_memory_uses_the_best_order():
    "A wide branch that shrinks first is best run first, whatever order the model was written in."
    image = keras.Input((16, 16, 1))
    wide = [
        layers.GlobalMaxPooling2D()(layers.Conv2D(8, 1, name=f"wide{index}")(image))
        for index in range(4)
    ]
    model = keras.Model(image, layers.Concatenate()(wide))
    report = model_cost(model)
    assert report.best_order and report.total.memory == 4 * (256 * 8 + 4 * 8)


# ---------------------------------------------------------------- layers that Keras does not know


def test_handlers_are_inherited_and_can_be_replaced():
    class Gate(layers.Layer):
        def call(self, inputs):
            return keras.ops.convert_to_tensor(np.asarray(inputs))

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    class Finer(Gate):
        pass

    model = keras.Sequential([keras.Input((6,)), Finer(name="finer")])
    assert model_cost(model).unknown == ["finer"]
    with pytest.raises(
        CostError, match="finer, a Finer.* so add one with register_handler"
    ) as error:
        model_cost(model, strict=True)
    assert str(error.value).endswith("(from fashion_nb import register_handler)")
    assert model_cost(model)["finer"].note.endswith("(from fashion_nb import register_handler)")
    with pytest.raises(CostError, match="from fashion_nb import register_handler"):
        model_cost(model).derivation("finer")
    register_handler(
        Gate, lambda call, training=False: Work((Term("other", "gates", (("n", 6),)),))
    )
    assert model_cost(model, "everything", strict=True).total.flops == 6


def test_unknown_work_is_said_in_every_form(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Lambda(lambda x: x, name="lambda"), layers.Dense(2)]
    )
    report = model_cost(model)
    assert report.unknown == ["lambda"] and not report.total.known
    for form in ("txt", "md", "html"):
        assert "LOWER BOUNDS" in report.text(form) and "≥ 26" in report.text(form)
    assert json.loads(report.text("json"))["lower_bounds"] is True
    assert compare_costs([report])["lower bound"].tolist() == [True]


# ---------------------------------------------------------------- files


class Table(HTMLParser):
    "The cells of a page's table."

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_files_hold_the_same_numbers(tmp_path):
    report = model_cost(branching(), "everything")
    names = [row.name for row in report.layers] + ["total"]
    flops = [row.flops for row in report.layers] + [report.total.flops]
    files = {
        end: report.save(tmp_path / f"cost.{end}").read_text()
        for end in ("txt", "json", "csv", "md", "tex", "html")
    }
    assert [int(row["flops"]) for row in csv.DictReader(io.StringIO(files["csv"]))] == flops
    document = json.loads(files["json"])
    assert [row["flops"] for row in (*document["layers"], document["total"])] == flops
    head, *rows = Table(files["html"]).rows
    assert [row[0] for row in rows] == names and [row[head.index("FLOPs")] for row in rows] == [
        f"{count:,}" for count in flops
    ]
    markdown = [
        re.split(r"\s*\|\s*", line)[1:-1]
        for line in files["md"].splitlines()
        if line.startswith("|")
    ]
    assert [row[markdown[0].index("flops")] for row in markdown[2:]] == [
        f"{count:,}" for count in flops
    ]
    for form in ("txt", "tex"):
        assert all(f"{count:,}" in files[form] for count in flops)
    assert files["tex"].count("{") == files["tex"].count("}")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    report = model_cost(build_model("stride_2"))
    (tmp_path / "file").write_text("kept")
    for path, words in [
        ("cost.xls", "ends in"),
        ("cost", "ends in"),
        ("file/cost.csv", "cannot be written"),
    ]:
        with pytest.raises(CostError, match=words):
            report.save(tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "kept"


# ---------------------------------------------------------------- derivations


def evaluated(latex):
    "A product or sum of numbers in LaTeX, computed."
    text = (
        latex.replace("{,}", "").replace(r"\cdot", "*").replace(r"\times", "*").replace(r"\,", "")
    )
    while r"\frac" in text:
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)//(\2))", text)
    text = re.sub(r"\^\{?(\d+)\}?", r"**\1", text)
    text = re.sub(r"(?<=[\d)])\s+(?=[\d(])", " * ", text)
    assert re.fullmatch(r"[\d\s*+()/{}-]+", text), latex
    return eval(text.replace("{", "(").replace("}", ")"))


@pytest.mark.parametrize("name", ["stride_1", "stride_2"])
def test_each_derivation_comes_to_its_own_result(name):
    report = model_cost(build_model(name), "everything")
    for row in report.layers:
        derivation = report.derivation(row.name)
        counts = [value for _, _, _, value in derivation.lines]
        for _, formula, numbers, value in derivation.lines:
            assert evaluated(numbers) == value, (row.name, formula, numbers)
        if counts:
            *_, result = derivation.result.rpartition("=")
            assert evaluated(result) == row.flops
            assert sum(counts) + row.macs == row.flops


# ---------------------------------------------------------------- roofline and plots


def test_roofline_is_the_lower_of_two_limits():
    device = Device("paper", 1e9, 1e8)
    frame = roofline(model_cost(build_model("stride_1")), device)
    expected = np.minimum(device.flops_per_second, frame["intensity"] * device.bytes_per_second)
    np.testing.assert_allclose(frame["attainable"], expected)
    assert set(frame["limited by"]) == {"arithmetic", "memory"} and "Flatten" not in frame.index


def test_plots_show_what_they_say():
    reports = [model_cost(build_model(name)) for name in ("stride_1", "stride_2")]
    ax = plot_costs(reports, "macs", most=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv2", "conv3"]
    assert sorted(bar.get_width() for bars in ax.containers for bar in bars) == [
        720_000,
        1_036_800,
        4_147_200,
        13_939_200,
    ]
    ax = plot_roofline(reports, Device("paper", 1e9, 1e8))
    assert len(ax.collections) == 2 and ax.get_yscale() == "log"
    with pytest.raises(CostError, match="expected one of params"):
        plot_costs(reports, "seconds")


def test_bit_operations_of_attention_use_activations_twice():
    start = keras.Input((10, 16))
    model = keras.Model(start, layers.MultiHeadAttention(4, 4, use_bias=False)(start, start))
    report = model_cost(model)
    products = 2 * 10 * 10 * 16
    assert report.total.macs == 4 * 10 * 16 * 16 + products
    assert (
        bit_operations(report, 2, 8)["total"] == (report.total.macs - products) * 16 + products * 64
    )


# ---------------------------------------------------------------- against keras-flops


def random_chain(seed):
    "A random Sequential model of the layers that the first two projects use."
    draw = random.Random(seed)
    stack = [keras.Input((draw.randint(9, 20), draw.randint(9, 20), draw.choice((1, 2, 4))))]
    for _ in range(draw.randint(1, 4)):
        options = {
            "strides": draw.choice((1, 1, (1, 2), 2)),
            "padding": "same",
            "use_bias": draw.random() < 0.5,
        }
        kinds = (
            lambda: layers.Conv2D(draw.choice((4, 8)), (draw.randint(1, 3), draw.randint(1, 3)),
                activation=draw.choice((None, "relu")), **options),
            lambda: layers.BatchNormalization(),
            lambda: layers.MaxPooling2D(draw.choice((1, 2)), padding="same"),
            lambda: layers.AveragePooling2D((1, 2), padding="same"),
            lambda: layers.Rescaling(0.5, offset=draw.choice((0, 1))),
            lambda: layers.ReLU(),
            lambda: layers.Dropout(0.5),
            lambda: layers.Dense(draw.randint(1, 6), use_bias=draw.random() < 0.5),
        )
        stack.append(draw.choice(kinds)())
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
    one, two, all_of_it = (
        model_cost(model, name).total for name in ("one_per_mac", "two_per_mac", "everything")
    )
    rows = zip(model.layers, model_cost(model).layers)
    biases = sum(
        math.prod(row.output_shape) for layer, row in rows if getattr(layer, "use_bias", False)
    )
    assert one.macs == two.macs and two.flops - one.flops == two.macs
    assert one.flops == one.macs + biases
    assert all_of_it.flops == two.flops + all_of_it.elementwise


def test_channels_first_counts_the_same():
    def net(data_format, shape):
        return keras.Sequential([keras.Input(shape), layers.Conv2D(6, 3, data_format=data_format)])

    last, first = model_cost(net("channels_last", (9, 8, 4))), model_cost(
        net("channels_first", (4, 9, 8))
    )
    assert last.total.macs == first.total.macs == 7 * 6 * 6 * 9 * 4


# ---------------------------------------------------------------- errors and speed


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: None, "type NoneType: expected a Keras model"),
        (lambda: layers.Dense(3), "type Dense: expected a Keras model"),
        (lambda: keras.Sequential(), "is not built"),
        (lambda: keras.Sequential([layers.Conv2D(2, 3)]), "is not built"),
        (
            lambda: keras.Sequential([keras.Input((None, 8, 1)), layers.Conv2D(2, 3)]),
            "expected fixed sizes",
        ),
    ],
)
def test_what_cannot_be_counted_is_named(model, message):
    with pytest.raises(CostError) as error:
        model_cost(model())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "gmacs"}, "expected one of two_per_mac"),
        ({"batch_size": 0}, "1 or more"),
        ({"input_shape": (9, 9, 1)}, "expected one that fits"),
        ({"padding_taps": "ignored"}, "expected 'counted' or 'skipped'"),
        ({"zero_weights": True}, "expected 'counted' or 'skipped'"),
        ({"convention": "profiler", "training": True}, "expected none"),
        ({"padding_taps": "skipped", "zero_weights": "skipped"}, "at most one"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(CostError, match=message):
        model_cost(build_model("stride_2"), **options)


@pytest.mark.slow
def test_speed():
    """Ratios of processor time, with room for whatever else the machine does: they guard against a
    slower algorithm. benchmark_cost.py prints what it takes."""
    _, _, ratio = against_keras_flops()
    assert ratio >= 100
    small, large = chain(100), chain(800)
    # linear would be 8, quadratic 64
    assert best(lambda: model_cost(large), 3) < 16 * best(lambda: model_cost(small), 3)
