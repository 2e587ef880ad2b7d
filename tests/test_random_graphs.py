"""Random functional graphs of up to 40 layers: our counts against two independent counters, call
by call.

XLA's lowered analysis and PyTorch's counter look at each graph in processes of their own
(`checks.workers`). Where a counter counts otherwise by a rule of its own, the rule is in
`checks.differences.RULES` and must account for the difference exactly. 50 graphs in every run,
10,000 with --slow. The environment variable FASHION_NB_SEED moves on to other graphs; a failure
names the seeds of `random_model` that failed.
"""
import os
import random

import pytest
from random_models import KINDS, random_model

from fashion_nb.analysis import handlers as handlers_room
from fashion_nb.analysis import terms as terms_room
from fashion_nb.analysis.cost import model_cost
from fashion_nb.analysis.graph import model_graph
from fashion_nb.checks.differences import SKIPS, explained
from fashion_nb.checks.keras_flops import CheckError
from fashion_nb.checks.rebuild import CounterResult
from fashion_nb.checks.workers import counter_macs

# Keras 3.15 on PyTorch fails on tensors without contents for these: they would leave one counter
# alone.
NOT_ON_TORCH = ("UpSampling1D", "UpSampling2D", "UpSampling3D", "RepeatVector", "AveragePooling3D")
BLOCK = 125
START = 10_000 * int(os.environ.get("FASHION_NB_SEED", "0"))  # the first seed


def layers_of(seed):
    "A size for each seed: many small graphs, some with 40 layers."
    return 1 + min(39, int(random.Random(seed).expovariate(1 / 7)))


def by_call(answer, names):
    "A counter's MACs for each of our calls; it may name a part of a call, such as 'Conv1D_1/pad'."
    found = dict.fromkeys([*names, ""], 0)
    for layer in answer.layers:
        name = layer.name
        while name not in found:
            name = name.rpartition("/")[0]
        found[name] += layer.macs
    return found


def rules_for(counter, call):
    """What a counter's own rules say about a call; taps on padding are skipped on both sides when
    XLA is asked."""
    if counter == "torch":
        return explained("torch", call)
    return explained("xla, padding skipped", call) + [
        rule for rule in explained("xla", call) if rule[0] != SKIPS
    ]


def unexplained(model, heard):
    "What the counters say otherwise than we, call by call, without what their own rules explain."
    found = []
    for counter, answer in heard.items():
        if not isinstance(answer, CounterResult):
            found.append((counter, str(answer)))
            continue
        report = model_cost(model, padding_taps="counted" if counter == "torch" else "skipped")
        ours = {row.name: row.macs for row in report.layers}
        theirs = by_call(answer, ours)
        for call in model_graph(model).calls:
            gap = theirs[call.name] - ours[call.name]
            if gap != sum(difference for _, difference in rules_for(counter, call)):
                found.append((counter, call.name, call.kind, ours[call.name], theirs[call.name]))
        if theirs[""] or answer.macs != sum(theirs.values()):
            found.append((counter, "in no call", "", answer.macs, sum(theirs.values())))
    return found


def check_block(first, count=BLOCK):
    """Build graphs for `count` seeds, ask both counters about all of them, and name every seed with
    a difference."""
    seeds = range(START + first, START + first + count)
    models = [random_model(seed, layers=layers_of(seed), without=NOT_ON_TORCH) for seed in seeds]
    answers = counter_macs(models)
    wrong = {
        seed: found
        for seed, model, heard in zip(seeds, models, answers)
        if (found := unexplained(model, heard))
    }
    assert not wrong, wrong
    for model in models:
        assert model_cost(model, strict=True).total.params == model.count_params()
    return models


@pytest.fixture(scope="module", autouse=True)
def both_counters():
    pytest.importorskip("jax")
    pytest.importorskip("torch")


def test_the_first_graphs():
    models = check_block(0, 50)
    assert (
        max(len(model.layers) for model in models) > 20
        and len({layer for model in models for layer in map(type, model.layers)}) > 30
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10_000 // BLOCK))
def test_ten_thousand_graphs(block):
    check_block(block * BLOCK)


def test_a_wrong_count_is_found(monkeypatch):
    "The comparison itself can fail: one MAC too many in one layer is named."

    model = next(
        m
        for m in (random_model(seed, 8, without=NOT_ON_TORCH) for seed in range(50))
        if any(type(x).__name__ == "Conv2D" for x in m.layers)
    )
    (heard,) = counter_macs([model])
    assert unexplained(model, heard) == []
    right = handlers_room.HANDLERS["Conv2D"]

    def wrong(call, training=False):
        work = right(call, training)
        return work + terms_room.Work((terms_room.Term("macs", "planted", (("n", 1),)),))

    monkeypatch.setitem(handlers_room.HANDLERS, "Conv2D", wrong)
    found = unexplained(model, heard)
    assert {counter for counter, *_ in found} == {"xla", "torch"} and all(
        kind == "Conv2D" for _, _, kind, *_ in found
    )


def test_kinds_left_out_are_named():
    assert set(NOT_ON_TORCH) <= KINDS
    with pytest.raises(CheckError):
        counter_macs([None])
