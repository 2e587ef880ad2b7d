"""The generator of random models: valid, varied, repeatable, and true to what it is told to leave
out."""
import json
import random
import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from random_models import (
    IMAGE_KINDS,
    KINDS,
    LARGEST,
    MERGES,
    SLOW_KINDS,
    STRUCTURES,
    TRAITS,
    models,
    random_model,
)

from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.memory import model_tensors, peak_of
from fashion_nb.analysis.schedule import schedule_model

SOME = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def traits_of(call):
    "What is unusual about a call, in the generator's words."
    config, found = call.layer.get_config() if hasattr(call.layer, "weights") else {}, set()
    if "strides" in config and np.max(config["strides"] or 1) > 1:
        found.add("strided")
    if np.max(config.get("dilation_rate", 1)) > 1:
        found.add("dilated")
    if config.get("groups", 1) > 1 and call.kind.startswith("Conv"):
        found.add("grouped")
    if config.get("depth_multiplier", 1) > 1:
        found.add("multiplied")
    if "padding" in config and isinstance(config["padding"], str):
        found.add(config["padding"])
        if call.kind.endswith("Transpose"):
            found.add(f"transposed_{config['padding']}")
    if "use_bias" in config:
        found.add("biased" if config["use_bias"] else "unbiased")
    if config.get("activation", "linear") != "linear" and call.kind != "Activation":
        found.add("activated")
    if any(
        len(set(np.atleast_1d(config.get(key) or 1))) > 1
        for key in ("kernel_size", "strides", "pool_size", "dilation_rate")
    ):
        found.add("uneven")
    return found


def kinds_of(model, graph):
    "The kinds and traits that occur in a model."
    found = {call.kind for call in graph.calls if not call.kind.startswith("ops.")}
    found |= {trait for call in graph.calls for trait in traits_of(call)}
    found |= {"ops"} if any(call.kind.startswith("ops.") for call in graph.calls) else set()
    found |= {"shared"} if any(call.repeat for call in graph.calls) else set()
    found |= {"nested"} if any(isinstance(layer, keras.Model) for layer in model.layers) else set()
    read = {tensor.key for call in graph.calls for tensor in call.inputs}
    return found | ({"leaf"} if any(tensor.key in read for tensor in graph.outputs) else set())


@pytest.fixture(scope="module")
def two_hundred():
    "Models of 1 to 40 calls, and their graphs."
    made = [random_model(seed, 1 + seed % 40) for seed in range(200)]
    return [(model, model_graph(model)) for model in made]


def test_every_kind_and_every_trait_occurs_in_200_models(two_hundred):
    found = set().union(*(kinds_of(model, graph) for model, graph in two_hundred))
    assert KINDS | TRAITS <= found, sorted((KINDS | TRAITS) - found)


def test_shapes_sizes_inputs_and_outputs_vary_within_their_bounds(two_hundred):
    for seed, (model, graph) in enumerate(two_hundred):
        assert 1 <= len(graph.calls) <= 1 + seed % 40
        assert all(
            min(tensor.shape) >= 1 and tensor.elements <= 2 * LARGEST
            for call in graph.calls
            for tensor in call.outputs
        )
        # each input is read
        assert set(range(-len(graph.inputs), 0)) <= {
            tensor.producer for call in graph.calls for tensor in call.inputs
        }
    graphs = [graph for _, graph in two_hundred]
    assert {len(graph.inputs) for graph in graphs} >= {1, 2, 3} and len(
        {len(graph.outputs) for graph in graphs}
    ) >= 3
    assert {len(tensor.shape) for graph in graphs for tensor in graph.inputs} == {2, 3, 4, 5}
    assert np.mean([len(graph.calls) / (1 + seed % 40) for seed, graph in enumerate(graphs)]) > 0.95


def test_the_same_seed_gives_the_same_model_and_json_gives_it_back(two_hundred):
    for seed, (model, _) in enumerate(two_hundred[:20]):
        written = model.to_json()
        assert random_model(random.Random(seed), 1 + seed % 40).to_json() == written
        assert json.loads(keras.models.model_from_json(written).to_json()) == json.loads(written)
        # nothing of our own
        assert all(
            item["module"].startswith("keras") for item in json.loads(written)["config"]["layers"]
        )
    assert len({model.to_json() for model, _ in two_hundred}) == 200


def test_models_run_and_give_the_shapes_that_they_promise(two_hundred):
    for model, graph in two_hundred[::8]:
        inputs = [np.zeros((2, *tensor.shape[1:]), np.float32) for tensor in graph.inputs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a softmax over one number
            outputs = model(inputs if len(inputs) > 1 else inputs[0])
        assert [tuple(one.shape[1:]) for one in keras.tree.flatten(outputs)] == [
            tensor.shape[1:] for tensor in graph.outputs
        ]


@pytest.mark.slow
def test_slow_kinds_come_when_they_are_asked_for():
    found = set()
    for seed in range(25):
        model = random_model(seed, 15, kinds=SLOW_KINDS | {"Conv1D", "Dense", "RepeatVector"})
        found |= {call.kind for call in model_graph(model).calls}
        assert keras.models.model_from_json(model.to_json()).to_json() == model.to_json()
    assert {getattr(keras.layers, kind).__name__ for kind in SLOW_KINDS} <= found


@pytest.mark.parametrize(
    "left_out",
    [
        {"strided", "dilated"},
        {"grouped", "multiplied", "uneven"},
        {"transposed_valid", "causal"},
        {"valid"},
        {"same"},
        {"unbiased", "activated"},
        {"biased"},
        {"Conv2DTranspose", "DepthwiseConv2D", "Dense"},
        {"shared", "nested", "ops", "leaf"},
        set(MERGES),
    ],
    ids=lambda left_out: "-".join(sorted(left_out)),
)
def test_what_is_left_out_does_not_occur(left_out):
    for seed in range(8):
        model = random_model(seed, 25, without=left_out)
        found = kinds_of(model, model_graph(model))
        assert not found & left_out, (seed, found & left_out)


def test_only_what_is_asked_for_occurs():
    for seed in range(5):
        model = random_model(seed, 12, kinds=IMAGE_KINDS)
        assert {call.kind for call in model_graph(model).calls} <= set(IMAGE_KINDS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="found conv2d"):
        random_model(0, kinds={"conv2d"})
    with pytest.raises(ValueError, match="found groped"):
        random_model(0, without={"groped"})


@SOME
@given(models(largest=30))
def test_the_best_order_of_a_random_model_is_proved(model):
    graph = model_graph(model)
    for in_place in (False, True):
        tensors, schedule = model_tensors(graph, in_place=in_place), schedule_model(
            graph, in_place=in_place
        )
        assert schedule.exact and peak_of(schedule.order, **tensors) == schedule.peak <= peak_of(
            range(len(graph.calls)), **tensors
        )


def test_a_failure_shrinks_to_a_small_model():
    smallest = find(
        models(kinds={"Conv2D", "Add"}),
        lambda model: any(layer.name.startswith("Add") for layer in model.layers),
        settings=settings(max_examples=200, deadline=None, derandomize=True),
    )
    assert len(model_graph(smallest).calls) <= 5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_that_is_asked_for_occurs(structure):
    found = set()
    for seed in range(10):
        model = random_model(seed, 12, kinds={structure, "Dense", "Conv2D", "Add"})
        found |= kinds_of(model, model_graph(model))
    assert structure in found and not found & (set(STRUCTURES) - {structure})
