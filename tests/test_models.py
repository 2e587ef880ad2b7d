"""The zoo: every network by name, the same with and without rescaling, saving, pruning."""
import keras
import numpy as np
import pytest

from fashion_nb.models.words import ModelError
from fashion_nb.models.zoo import build_model, list_models, model_info, prune_magnitude

VARIANTS = [name for name in list_models() if name.startswith("stride_1_")]


def kernels(model):
    return [
        keras.ops.convert_to_numpy(weight) for weight in model.weights if "kernel" in weight.name
    ]


def test_names_explain_themselves_and_are_listed_once():
    assert len(set(list_models())) == len(list_models()) == 15
    for name in list_models():
        info = model_info(name)
        assert info.name == name and info.summary.endswith(".") and "\n" not in info.summary
        assert (
            "Fashon_detection" in info.source
            or "MnistClassifier" in info.source
            or name.startswith("budget_")
            and "this book" in info.source
        )


@pytest.mark.parametrize("name", list_models())
def test_a_network_has_its_name_its_input_and_ten_probabilities(name):
    for rescale in (True, False):
        model = build_model(name, rescale=rescale)
        assert (
            model.name == name
            and model.input_shape == (None, 28, 28, 1)
            and model.output_shape == (None, 10)
        )
        # Keras lists it for functional models only
        first = next(layer.name for layer in model.layers if layer.name != "input_layer")
        assert (first == "rescaling") is rescale
        assert model.layers[-1].activation is keras.activations.softmax
        assert not model.compiled and len({layer.name for layer in model.layers}) == len(
            model.layers
        )


@pytest.mark.parametrize(
    "name", ["stride_1_depthwise_separable", "mnist_classifier_32_64p_64_128p"]
)
def test_a_network_comes_back_from_its_file(name, tmp_path):
    model, pixels = build_model(name), np.zeros((2, 28, 28, 1), np.uint8)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "model.keras").predict(pixels, verbose=0),
        model.predict(pixels, verbose=0),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_differs_from_the_network_it_is_made_from(name):
    full, variant = build_model("stride_1"), build_model(name)
    assert [layer.name for layer in variant.layers[-3:]] == [
        layer.name for layer in full.layers[-3:]
    ]
    if name == "stride_1_pruned":
        # of millions of random weights one may be 0
        assert [(kernel == 0).mean().round(6) for kernel in kernels(variant)] == [0.8] * 5 and all(
            (kernel == 0).mean() < 1e-4 for kernel in kernels(full)
        )
    else:
        assert (
            variant.count_params() != full.count_params()
            and variant.count_params() < full.count_params()
        )


@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.999, 0.9999999])
def test_pruning_takes_the_smallest_of_each_kernel(sparsity):
    model = build_model("stride_2")
    before = [kernel.copy() for kernel in kernels(model)]
    others = [
        keras.ops.convert_to_numpy(weight)
        for weight in model.weights
        if "kernel" not in weight.name
    ]
    pruned = prune_magnitude(model, sparsity, copy=True)
    assert all((old == now).all() for old, now in zip(before, kernels(model)))
    for old, now in zip(before, kernels(pruned)):
        gone = now == 0
        assert (
            gone.sum() == min(round(sparsity * old.size), old.size - 1)
            and (old[~gone] == now[~gone]).all()
        )
        assert not gone.any() or np.abs(old[gone]).max() <= np.abs(old[~gone]).min()
    assert all(
        (old == keras.ops.convert_to_numpy(weight)).all()
        for old, weight in zip(
            others, [weight for weight in pruned.weights if "kernel" not in weight.name]
        )
    )


def test_pruning_twice_is_pruning_once():
    model = prune_magnitude(build_model("stride_2"), 0.6)
    once = [kernel.copy() for kernel in kernels(model)]
    assert all((old == now).all() for old, now in zip(once, kernels(prune_magnitude(model, 0.6))))


@pytest.mark.parametrize(
    "model, sparsity, words",
    [
        ("stride_1", 0.5, "cannot prune str"),
        (None, 1.0, "a share from 0 to below 1"),
        (None, float("nan"), "found sparsity nan"),
        (None, -1, "found sparsity -1"),
        (keras.Sequential([keras.layers.Dense(1)]), 0.5, "that is built"),
    ],
)
def test_what_cannot_be_pruned_is_one_sentence(model, sparsity, words):
    with pytest.raises(ModelError) as caught:
        prune_magnitude(build_model("stride_2") if model is None else model, sparsity)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError) as caught:
        build_model("stride_3")
    assert all(name in str(caught.value) for name in list_models())
