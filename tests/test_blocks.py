"""Networks described in words: what is built is what was asked for, and what cannot be built is one
sentence."""
import json
import math
import re

import numpy as np
import pytest
from commands import fashion_nb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fashion_nb.analysis.cost import model_cost
from fashion_nb.models.files import open_model
from fashion_nb.models.words import (
    ACTIVATIONS,
    ModelError,
    is_description,
    parse_blocks,
)
from fashion_nb.models.zoo import build_model, list_models, model_info

# An account of its own: words in, MACs and parameters out


def split_word(word):
    "How often, kind, size, growth, kernel, stride and padding of one word."
    times, _, word = word.rpartition("*")
    word, _, stride = word.partition("/")
    kind = re.match("[a-z]+", word)[0]
    size, valid = word[len(kind) :], word.endswith("v")
    size, _, kernel = size.rstrip("v").partition("k")
    size, _, growth = size.partition("x")
    return (
        int(times or 1),
        kind,
        float(size or 0),
        int(growth or 1),
        int(kernel or 3),
        int(stride or 1),
        valid,
    )


def by_hand(text):
    "MACs and parameters of a description."
    side, channels, features, macs, weights = 28, 1, None, 0, 0
    plain = "bare" in text.split()

    def convolution(side_out, kernel, before, after, depthwise=False, follows=True):
        nonlocal macs, weights
        each = kernel * kernel * (before if depthwise else before * after)
        macs += side_out**2 * each
        # a bias, or the four numbers of a normalization
        weights += each + (after if plain else 4 * after) * follows

    def dense(before, after):
        nonlocal macs, weights
        macs, weights = macs + before * after, weights + before * after + after

    for word in text.split():
        if word in ("relu", "silu", "hard_silu", "bare", "raw"):
            continue
        times, kind, size, growth, kernel, stride, valid = split_word(word)
        size = int(size) if kind != "drop" else size
        for _ in range(times):
            after = (side - kernel) // stride + 1 if valid else math.ceil(side / stride)
            if kind == "conv":
                convolution(after, kernel, channels, size)
            elif kind == "sep":
                convolution(after, kernel, channels, channels, depthwise=True, follows=False)
                convolution(after, 1, channels, size)
            elif kind == "res":
                convolution(after, kernel, channels, size)
                convolution(after, kernel, size, size)
                if stride > 1 or channels != size:
                    convolution(after, 1, channels, size)
            elif kind == "inv":
                wide = channels * growth
                if growth > 1:
                    convolution(side, 1, channels, wide)
                convolution(after, kernel, wide, wide, depthwise=True)
                convolution(after, 1, wide, size)
            elif kind == "se":
                dense(channels, max(channels // 4, 4))
                dense(max(channels // 4, 4), channels)
            elif kind in ("pool", "avg"):
                side //= 2
            elif kind in ("gap", "flat"):
                features = channels * (side**2 if kind == "flat" else 1)
            elif kind == "dense":
                dense(features, size)
                features = size
            if kind in ("conv", "sep", "res", "inv"):
                side, channels = after, size
    dense(features, 10)
    return macs, weights


def test_the_account_itself():
    # the published stride-2 net
    assert by_hand("bare conv20v conv40v/2 conv80v/2 flat dense100") == (2_079_480, 237_430)
    assert by_hand("conv16/2 res16 gap") == (14 * 14 * (144 + 4_608) + 160, 5_114)


@st.composite
def descriptions(
    draw, convolutions=("conv", "sep", "res", "inv"), others=("se", "pool", "avg", "drop0.2")
):
    "A description that can be built, not too large."
    words, side = (
        draw(
            st.permutations([
                draw(st.sampled_from((None, *ACTIVATIONS))),
                draw(st.sampled_from((None, "bare"))),
                draw(st.sampled_from((None, "raw"))),
            ])
        ),
        28,
    )
    words = [word for word in words if word]
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(convolutions))
        kernel, stride, valid = (
            draw(st.sampled_from((1, 2, 3, 5))),
            draw(st.sampled_from((1, 1, 2, 3, 4))),
            kind == "conv" and draw(st.booleans()),
        )
        times = draw(st.sampled_from((1, 1, 2)))
        valid = valid and side > 4 + times * kernel * stride
        for _ in range(times):
            side = (side - kernel) // stride + 1 if valid else math.ceil(side / stride)
        text = f"{kind}{draw(st.integers(1, 12))}"
        text += f"x{draw(st.integers(1, 4))}" if kind == "inv" else ""
        text += (
            (f"k{kernel}" if kernel != 3 else "")
            + "v" * valid
            + (f"/{stride}" if stride > 1 else "")
        )
        words.append(f"{times}*{text}" if times > 1 else text)
        extra = draw(st.sampled_from((None, None, *others)))
        if extra and (side > 1 or extra not in ("pool", "avg")):
            words.append(extra)
            side = side // 2 if extra in ("pool", "avg") else side
    words.append(draw(st.sampled_from(("gap", "flat"))))
    words += draw(st.lists(st.sampled_from(("dense7", "drop0.5", "dense20")), max_size=2))
    return " ".join(words)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(descriptions())
def test_what_is_described_is_built_and_counted(text):
    import keras

    keras.utils.clear_session(free_memory=False)
    model = build_model(text)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    answers = keras.ops.convert_to_numpy(model(images, training=False))
    assert answers.shape == (3, 10) and answers.min() >= 0 and np.isfinite(answers).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    report = model_cost(model)
    assert report.unknown == []
    assert (report.total.macs, model.count_params()) == by_hand(text)
    assert is_description(text) and model_info(text).name == model.name


@pytest.mark.parametrize(
    "text",
    [
        "conv16/2 res16 gap",
        "2*sep16k5/2 flat dense20",
        "bare conv8v/2 pool res16/2 gap",
        "silu conv8/2 2*inv8x4 se inv16x2k5/2 drop0.2 gap",
    ],
)
def test_the_account_of_a_few(text):
    model = build_model(text)
    assert (model_cost(model).total.macs, model.count_params()) == by_hand(text)


# Wrong descriptions

WRONG = [
    ("conv16", "exactly one gap or flat"),
    ("conv16 gap flat", "exactly one gap or flat"),
    ("gap", "expected a convolution"),
    ("pool gap", "expected a convolution"),
    ("gap conv16", "expected a convolution"),
    ("conv16 dense20 gap", "dense stands on the wrong side of gap"),
    ("conv16 gap conv8", "conv stands on the wrong side of gap"),
    ("conv16 gap se", "se stands on the wrong side of gap"),
    ("conv16 gap dense0", "'dense0' is no block"),
    ("conv0 gap", "'conv0' is no block"),
    ("conv16 Gap gap", "'Gap' is no block"),
    ("conv16 bare gap", "'bare' is no block"),
    ("conv16 raw gap", "'raw' is no block"),
    ("raw relu raw conv16 gap", "one 'raw' at its start"),
    ("relu silu conv16 gap", "at most one activation"),
    ("bare relu bare conv16 gap", "one 'bare' and one 'raw' at its start"),
    ("conv16 silu gap", "'silu' is no block"),
    ("conv16x4 gap", "a growth of channels (x4) is for inv only"),
    ("inv16 gap", "expected a growth of channels (x4) behind it, such as inv32x4"),
    ("sep16v gap", "'valid' padding"),
    ("conv16/5 gap", "'conv16/5' is no block"),
    ("conv16k0 gap", "'conv16k0' is no block"),
    ("0*conv16 gap", "'0*conv16' is no block"),
    ("conv99999 gap", "'conv99999' is no block"),
    ("conv16 drop1 gap", "'drop1' is no block"),
    ("conv16 drop1.0 gap", "'drop1.0' is no block"),
    ("conv-16 gap", "'conv-16' is no block"),
    ("conv16,gap flat", "'conv16,gap' is no block"),
]


@pytest.mark.parametrize("text, said", WRONG)
def test_a_wrong_description_is_one_sentence(text, said):
    with pytest.raises(ModelError, match="expected|only") as error:
        build_model(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "conv16k9v conv16k9v conv16k9v conv16k9v gap",
        "conv4v/4 conv4v/4 conv4v/4 gap",
        "conv4/4 conv4/4 conv4/2 pool gap",
        "conv8k29v gap",
    ],
)
def test_a_block_that_does_not_fit(text):
    with pytest.raises(
        ModelError,
        match=(
            r"block \d of .* does not fit a map of \(\d+, \d+, \d+\): expected a smaller kernel, or"
            r" fewer strides and poolings before it"
        ),
    ) as error:
        build_model(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", " ", "none", "resnet", "conv", "stride_2 gapp", "κονβ16 flatt"]
)
def test_what_is_no_description(text):
    assert not is_description(text)
    with pytest.raises(ModelError, match="expected one of stride_1, stride_2.*or a description"):
        model_info(text)


@pytest.mark.parametrize("name", list_models())
def test_no_name_of_the_zoo_reads_as_a_description(name):
    assert not is_description(name)


PIECES = st.sampled_from(["conv16", "res8/2", "inv8x2", "se", "gap", "flat", "dense9", "drop0.1",
    "bare", "raw", "silu", "3*sep4k5", "pool", "conv4v", "x", "conv", "2*gap", "0*se"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=6).map(" ".join), st.text(max_size=30)))
def test_any_text_is_read_or_refused(text):
    try:
        activation, normalize, rescale, blocks = parse_blocks(text)
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert (
            activation in ACTIVATIONS and isinstance(normalize, bool) and isinstance(rescale, bool)
        )
        assert sum(block.kind in ("gap", "flat") for block in blocks) == 1
        assert all(block.size == int(block.size) for block in blocks if block.kind != "drop")


def test_each_word_says_what_it_does():
    base = "conv8/2 conv8 gap"
    changed = ["silu conv8/2 conv8 gap", "raw conv8/2 conv8 gap", "bare conv8/2 conv8 gap",
        "conv8/2 res8 gap", "conv8/2 sep8 gap", "conv8/2 inv8x2 gap", "conv8/2 conv8v gap",
        "conv8/2 conv8k5 gap",
               # fmt: skip
               "conv8/2 conv8 se gap", "conv8/2 conv8 flat", "conv8/2 2*conv8 gap",
               "conv8/2 pool conv8 gap", "conv8/2 conv8 gap dense20", "conv8/2 drop0.5 conv8 gap"]

    def made(text):
        config = build_model(text).get_config()
        return json.dumps(
            [
                (layer["class_name"], {k: v for k, v in layer["config"].items() if k != "name"})
                for layer in config["layers"]
            ],
            default=str,
        )

    assert len({made(text) for text in (base, *changed)}) == len(changed) + 1
    assert (
        model_info(base).name
        == model_info(f"  {base.replace(' ', '   ')} ").name
        != model_info(changed[0]).name
    )


# Files and the command line


@pytest.mark.parametrize(
    "text",
    ["bare hard_silu conv4/2 se inv8x2/2 gap dense7 drop0.5", "conv4/4 sep8 res8/2 avg flat"],
)
def test_a_saved_one_is_opened_again(text, tmp_path):
    import keras

    model = build_model(text)
    model.save(tmp_path / "mine.keras")
    opened = open_model(str(tmp_path / "mine.keras"))
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    one, other = (keras.ops.convert_to_numpy(each(images)) for each in (model, opened))
    np.testing.assert_array_equal(one, other)
    assert (
        model_cost(opened).total == model_cost(model).total
        and open_model(text).count_params() == model.count_params()
    )


def test_words_at_the_prompt(tmp_path):
    answer = fashion_nb("cost", "conv16/2 res16 gap", "--json", cwd=tmp_path)
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    total = json.loads(answer.stdout)["total"]
    assert (total["macs"], total["params"]) == by_hand("conv16/2 res16 gap")
    for text, said in (
        ("conv16/2 res16", "exactly one gap or flat"),
        ("conv16/2 gap res16", "wrong side"),
        ("conv9k29v gap", "does not fit"),
    ):
        answer = fashion_nb("cost", text, cwd=tmp_path)
        assert (
            answer.returncode == 2 and said in answer.stderr and answer.stderr.count("\n") == 1
        ), answer.stderr
