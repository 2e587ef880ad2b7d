"""The counting counters: the workers, the rules that explain them, and verify_cost and
verify_field on whole models."""
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.profiler_faults import profiler_bugs
from fashion_nb.checks import differences as differences_room
from fashion_nb.checks import keras_flops as keras_flops_room
from fashion_nb.checks import verify as verify_room
from fashion_nb.checks import workers as workers_room
from fashion_nb.checks.gradient import measured_field, measured_geometry
from fashion_nb.checks.keras_flops import CheckError
from fashion_nb.checks.verify import verify_cost, verify_field
from fashion_nb.checks.workers import (
    counter_macs,
    torch_count,
    xla_count,
    xla_temporary_bytes,
)

pytest.importorskip("jax")


def has(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


needs_torch = pytest.mark.skipif(not has("torch"), reason="torch is not installed")


def mixed():
    "Branches, a shared layer, a model within, attention and a loop."
    import keras
    from keras import layers

    image = keras.Input((12, 12, 4))
    conv = layers.Conv2D(4, 3, padding="same", activation="silu", name="conv")
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            layers.SeparableConv2D(4, 3, padding="same", name="a"),
            layers.Dense(4, name="b"),
        ],
        name="inner",
    )
    x = layers.Add()([conv(image), conv(conv(image))])
    x = layers.Concatenate()(
        [inner(x), inner(inner(x)), layers.Conv2DTranspose(3, 3, padding="same")(x)]
    )
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, dilation_rate=2, padding="same")(x))
    x = layers.Reshape((144, 4))(layers.AveragePooling2D(3, strides=1, padding="same")(x))
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(3))(x)
    return keras.Model(image, layers.Dense(3, activation="softmax")(x), name="mixed")


def test_mixed_model_is_explained_to_the_last_unit():
    verdict = verify_cost(mixed())
    assert verdict.ok, verdict
    heard = {row.counter for row in verdict.rows if row.difference is not None}
    assert {"xla", "keras-flops"} <= heard
    assert any(row.status == "explained" for row in verdict.rows)
    names = {row.layer for row in verdict.rows}
    assert {"conv", "conv#2", "conv#3", "inner/a", "inner#2/a", "inner#3/b", "attention"} <= names


@pytest.mark.parametrize("change", [{"macs": 1}, {"macs": -1}])
def test_one_mac_too_many_is_a_failure(change):
    from fashion_nb.analysis.cost import model_cost

    def wrong(model, *args, **options):
        report = model_cost(model, *args, **options)
        layers = [
            replace(row, macs=row.macs + change["macs"]) if row.name == "conv#2" else row
            for row in report.layers
        ]
        return replace(report, layers=layers)

    verdict = verify_cost(mixed(), wrong)
    assert not verdict.ok
    assert {row.layer for row in verdict.failures} == {"conv#2", "total"}


@pytest.mark.parametrize("kind", [
    *("Conv2D", "Conv2DTranspose", "DepthwiseConv2D"),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in (
        "Conv1D", "Conv3D", "Conv1DTranspose", "Conv3DTranspose", "DepthwiseConv1D",
        "SeparableConv1D", "SeparableConv2D",
    )),
])  # fmt: skip
def test_taps_by_rule_are_those_that_xla_and_the_profiler_count(kind):
    "All paddings, strides and dilations of each convolution, against the counters alone."
    import keras

    rank = (
        int(kind.partition("D")[0][-1]) if not kind.startswith(("Depth", "Sep")) else int(kind[-2])
    )
    models, calls = [], []
    for padding in ("valid", "same") + (("causal",) if kind == "Conv1D" else ()):
        for strides, dilation in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3)):
            for side in (9, 12):
                if kind.endswith("Transpose") and dilation > 1:
                    continue
                options = {"padding": padding, "strides": strides, "dilation_rate": dilation}
                if not kind.startswith("Depthwise"):
                    options["filters"] = 3
                layer = getattr(keras.layers, kind)(kernel_size=3, **options)
                models.append(keras.Sequential([keras.Input((side,) * rank + (4,)), layer]))
                calls.append(model_graph(models[-1]).calls[0])
    for call, said in zip(calls, counter_macs(models, ("xla",))):
        assert said["xla"].macs == differences_room._convolution_macs(call, "real"), (
            call.kind,
            call.layer.get_config(),
        )
    for call, model in list(zip(calls, models))[::3]:
        wrong = sum(fault.products for fault in profiler_bugs(call))
        counted = sum(
            number
            for name, number in keras_flops_room._profiled(model)[1].items()
            if name in verify_room._PROFILER_PRODUCTS
        )
        assert counted == 2 * differences_room._convolution_macs(call, "all") + wrong, (
            call.kind,
            call.layer.get_config(),
        )


def looping():
    "Loops, attention and Einstein sums, each a model of one call."
    import keras
    from keras import layers

    steps, film, words = keras.Input((5, 6)), keras.Input((4, 9, 9, 4)), keras.Input((8, 7, 6))
    two_kinds = layers.Bidirectional(
        layers.GRU(3), backward_layer=layers.LSTM(4, go_backwards=True)
    )
    made = [
        (steps, layer)
        for layer in (
            layers.LSTM(3),
            layers.GRU(3, reset_after=False),
            layers.SimpleRNN(3, use_bias=False),
            two_kinds,
        )
    ]
    made += [
        (steps, layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])),
        (steps, layers.LSTM(3, unroll=True)),
    ]
    made += [
        (film, layers.ConvLSTM2D(3, 3, dilation_rate=2)),
        (film, layers.TimeDistributed(layers.Conv2D(4, 3, groups=2))),
    ]
    made += [
        (words, layers.EinsumDense(sum_of, output))
        for sum_of, output in (
            ("btxc,cd->btxd", (8, 7, 5)),
            ("btxc,xd->btxd", (8, 7, 5)),
            ("btxc,xc->btxc", (8, 7, 6)),
            ("btxc,xc->btx", (8, 7)),
        )
    ]
    models = [keras.Model(tensor, layer(tensor)) for tensor, layer in made]
    attention = (
        layers.MultiHeadAttention(2, 3),
        layers.GroupQueryAttention(3, 4, 2),
        layers.MultiHeadAttention(2, 3, dropout=0.1),
    )
    return models + [keras.Model(steps, layer(steps, steps)) for layer in attention]


@pytest.mark.parametrize("group", ["random", "looping"])
def test_the_faults_are_all_that_lies_between_the_formula_and_the_profiler(group):
    """Call by call: the products by the profiler's rules are two a MAC by the formula, which has
    code of its own, and the faults."""
    from random_models import random_model

    from fashion_nb.analysis.operations import layer_work
    from fashion_nb.analysis.profiler_rules import profiler_operations

    models, wrong = (
        [random_model(seed, 20) for seed in range(60)] if group == "random" else looping()
    ), set()
    for call in (call for model in models for call in model_graph(model).calls):
        operations, faults = profiler_operations(call), profiler_bugs(call)
        if operations is None:
            continue
        counted = sum(count for name, count in operations if name in verify_room._PROFILER_PRODUCTS)
        assert counted == 2 * layer_work(call).macs + sum(fault.products for fault in faults), (
            call.kind,
            call.layer.get_config(),
        )
        wrong |= {fault.words for fault in faults}
    assert len(wrong) >= 5, wrong


@needs_torch
def test_torch_and_xla_agree_where_nothing_is_padded():
    import keras
    from keras import layers

    stacks = [
        [
            layers.Conv2D(6, 3, groups=2),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.Dense(5),
        ],
        [
            layers.Conv2DTranspose(3, 2, strides=2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ],
        [
            layers.Reshape((100, 4)),
            layers.GRU(5, return_sequences=True),
            layers.TimeDistributed(layers.Dense(2)),
        ],
    ]
    models = [keras.Sequential([keras.Input((10, 10, 4)), *stack]) for stack in stacks]
    for said in counter_macs(models):
        assert said["xla"].macs == said["torch"].macs > 0
        assert [row.macs for row in said["torch"].layers if row.macs]


def test_a_batch_costs_so_many_times_more():
    import keras

    model = keras.Sequential([keras.Input((None, 8)), keras.layers.Dense(3)])
    assert xla_count(model, batch_size=5, input_shape=(7, 8)).macs == 5 * 7 * 8 * 3
    with pytest.raises(CheckError, match="expected fixed sizes"):
        xla_count(model)


def test_what_cannot_be_heard_is_a_row_and_no_failure(monkeypatch):
    import keras

    def silent(*args, **options):
        raise CheckError(
            "the counter torch needs torch, which is not installed: pip install torch"
        )

    monkeypatch.setattr(verify_room, "torch_count", silent)
    verdict = verify_cost(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    assert verdict.ok
    [row] = [row for row in verdict.rows if row.counter == "torch"]
    assert (
        row.status == "no answer"
        and "not installed" in row.remark
        and "not installed" in repr(verdict)
    )


def test_bad_input_is_one_sentence(tmp_path):
    import keras

    bad = tmp_path / "bad.keras"
    bad.write_bytes(b"no archive")
    for model in (bad, str(bad), 3, keras.Sequential([keras.layers.Dense(3)])):
        for count in (xla_count, torch_count, xla_temporary_bytes):
            with pytest.raises(CheckError) as error:
                count(model)
            assert "\n" not in str(error.value)


def test_a_saved_model_needs_no_weights_read(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7)])
    model.save(tmp_path / "model.keras")
    assert xla_count(tmp_path / "model.keras").macs == 70


def test_a_file_that_wants_to_run_code_is_refused(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((10,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(CheckError, match="cannot count"):
        xla_count(tmp_path / "model.keras")


@pytest.mark.slow
def test_the_worker_ends_with_its_process_and_leaves_the_backend_alone():
    code = """
        import keras
        from fashion_nb.checks import workers
        net = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7)])
        macs = workers.xla_count(net).macs
        print(macs, keras.config.backend(), workers._workers["xla"].process.pid)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
    )
    macs, backend, pid = done.stdout.split()
    assert (macs, backend) == ("70", "tensorflow"), done.stderr[-2000:]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_dead_worker_is_replaced():
    import keras

    net = keras.Sequential([keras.Input((10,)), keras.layers.Dense(7)])
    assert xla_count(net).macs == 70
    workers_room._workers["xla"].process.kill()
    workers_room._workers["xla"].process.wait()
    assert xla_count(net).macs == 70


def test_activation_memory_against_xla():
    from fashion_nb.models.zoo import build_model

    assert xla_temporary_bytes(build_model("stride_2", rescale=False)) == 4 * (13_520 + 5_760)


# The gradient, on graphs

def branching():
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    down = layers.Conv2D(4, 3, strides=2, padding="same", name="down", activation="relu")(image)
    up = layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(down)
    both = layers.Concatenate(name="both")([image, up])
    block = keras.Sequential(
        [
            keras.Input((32, 32, 7)),
            layers.DepthwiseConv2D(3, name="dw"),
            layers.MaxPooling2D(2, name="pool"),
        ],
        name="block",
    )
    out = layers.SeparableConv2D(2, 3, dilation_rate=2, name="last")(keras.ops.relu(block(both)))
    return keras.Model(
        image,
        layers.Cropping2D(1, name="crop")(layers.ZeroPadding2D(2, name="pad")(out)),
        name="branching",
    )


def test_fields_of_a_graph():
    verdict = verify_field(branching())
    assert verdict.ok, verdict
    assert {"up", "both", "block/dw", "block/pool", "last", "crop"} <= {
        row.layer for row in verdict.rows
    }


def test_wrong_field_is_a_failure():
    from fashion_nb.analysis.field import receptive_field

    def wrong(model, **options):
        report = receptive_field(model, **options)
        return replace(
            report,
            layers=[
                replace(row, padding=(3, 2)) if row.name == "up" else row for row in report.layers
            ],
        )

    verdict = verify_field(branching(), wrong)
    assert [(row.layer, row.quantity) for row in verdict.failures] == [("up", "padding")]


@pytest.mark.parametrize(
    "name, layer, size, stride, padding",
    [
        ("MobileNet", "conv_pw_13", 315, 32, 126),
        pytest.param("VGG16", "block5_pool", 212, 32, 90, marks=pytest.mark.slow),
    ],
)
def test_published_fields_measured(name, layer, size, stride, padding):
    import keras

    measured = measured_geometry(getattr(keras.applications, name)(weights=None), layer)
    assert (measured.size, measured.stride, measured.padding) == (
        (size,) * 2,
        (stride,) * 2,
        (padding,) * 2,
    )


def test_squeeze_and_excitation_is_a_switch():
    import keras
    from keras import layers

    image = keras.Input((24, 24, 4))
    x = layers.Conv2D(4, 3, name="conv")(image)
    gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(image, layers.Multiply(name="gated")([x, gate]))
    assert measured_field(model, "gated", squeeze_excitation=False) == (3, 3)
    with pytest.raises(CheckError, match="reaches the border"):
        measured_field(model, "gated", largest_side=64)
    assert verify_field(model).ok and verify_field(model, squeeze_excitation=False).ok


@pytest.mark.slow
def test_very_deep_networks_do_not_underflow():
    import keras
    from keras import layers

    stack = [layers.Conv2D(2, 3, padding="same", name=f"conv{i}") for i in range(60)]
    assert measured_field(keras.Sequential([keras.Input((32, 32, 1)), *stack]), "conv59") == (
        121,
        121,
    )


def test_one_and_three_dimensions():
    import keras
    from keras import layers

    series = keras.Sequential([
        keras.Input((40, 2)),
        layers.Conv1D(3, 5, padding="causal", name="a"),
        layers.MaxPooling1D(2, name="b"),
    ])
    assert measured_geometry(series, "b").size == (6,) and verify_field(series).ok
    volume = keras.Sequential([keras.Input((9, 10, 11, 1)), layers.Conv3D(2, (1, 2, 3), name="c")])
    assert measured_field(volume, "c") == (1, 2, 3)
