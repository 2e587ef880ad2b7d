"""The frontier: nets within their budgets, the staircase that none beats, and plots whose marks and
names can be read."""
import json
import shutil
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import made_data

from fashion_nb.analysis.cost import model_cost
from fashion_nb.core.errors import FashionNbError
from fashion_nb.data.fashion_mnist import load_fashion_mnist
from fashion_nb.experiments.frontier import (
    BUDGETS,
    _compiled,
    budget_table,
    fastest,
    load_latency,
    measure_latency,
    pareto,
    plot_frontier,
    teacher_seconds,
    timed_runs,
    warm_up,
)
from fashion_nb.experiments.grid import GRIDS
from fashion_nb.experiments.leaderboard import leaderboard
from fashion_nb.experiments.published import published_points
from fashion_nb.experiments.store import StoreError, load_records, store_folder
from fashion_nb.models.zoo import build_model, model_info
from fashion_nb.prediction.pretrained import load_pretrained, pretrained_names


@pytest.fixture(scope="module")
def board():
    return leaderboard()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.group)
def test_the_net_of_a_budget_costs_no_more(budget):
    for settings in GRIDS[budget.group].rows.values():
        model = build_model(settings["model"])
        assert model_cost(model).total.macs <= budget.macs
        assert budget.parameters is None or model.count_params() <= budget.parameters


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.group)
def test_the_zoo_names_the_net_of_a_budget(budget):
    (settings,) = GRIDS[budget.group].rows.values()
    named, described = build_model(budget.group), build_model(settings["model"])
    first, second = (
        [(layer.name, tuple(weight.shape)) for layer in net.layers for weight in layer.weights]
        for net in (named, described)
    )
    assert first == second
    assert model_cost(named).total == model_cost(described).total and model_info(
        budget.group
    ).summary.startswith(settings["model"])


def test_budgets_without_results_say_so(tmp_path):
    table = budget_table(tmp_path)
    assert list(table.budget) == [budget.group for budget in BUDGETS] and table["mean"].isna().all()


def test_the_table_of_budgets_tells_what_was_stored():
    "Each figure from its source: the answers of each run, the network itself, and the budget."
    table, labels = budget_table().set_index("budget"), load_fashion_mnist().test.labels
    for budget in BUDGETS:
        row, model = table.loc[budget.group], build_model(budget.group)
        answers = [
            record.probabilities
            for record in load_records(budget.group)
            if record.row == f"{budget.group}/best"
        ]
        rates = [np.mean(each.argmax(1) == labels) for each in answers]
        assert row.seeds == len(rates) == GRIDS[budget.group].seeds >= 3
        assert row["mean"] == pytest.approx(np.mean(rates), abs=1e-12) and row[
            "std"
        ] == pytest.approx(np.std(rates, ddof=1), abs=1e-12)
        assert row.low < row["mean"] < row.high
        assert (row.macs, row.parameters) == (
            model_cost(model).total.macs,
            model.count_params(),
        ) and row.macs <= budget.macs == row["MACs allowed"]
        assert (
            budget.parameters is None
            or row.parameters <= budget.parameters == row["parameters allowed"]
        )
        assert row.target == budget.target


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12))
def test_the_staircase_by_its_definition(points):
    cost, accuracy = (np.array([point[k] for point in points], float) for k in (0, 1))
    kept = pareto(cost, accuracy)
    beaten = {
        i
        for i in range(len(points))
        for j in range(len(points))
        if (cost[j], -accuracy[j]) != (cost[i], -accuracy[i])
        and cost[j] <= cost[i]
        and accuracy[j] >= accuracy[i]
    }
    assert {points[i] for i in kept} == {points[i] for i in range(len(points)) if i not in beaten}
    assert (np.diff(cost[kept]) > 0).all() and (np.diff(accuracy[kept]) > 0).all()


@pytest.mark.parametrize("x", ["macs", "parameters", "seconds"])
def test_all_rows_and_all_published_points_are_drawn(board, x):
    ax = plot_frontier(board, x)
    figure = ax.figure
    figure.canvas.draw()
    drawn = np.concatenate([
        line.get_xydata()
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("", "None", None)
    ])
    wanted = np.column_stack([board[x], 1 - board["mean"]])[board["mean"] >= 0.8]
    assert all((np.isclose(drawn, point).all(axis=1)).any() for point in wanted)
    names = [text.get_text().strip() for axes in figure.axes for text in axes.texts]
    assert sorted(names) == (sorted(published_points().name) if x != "seconds" else [])
    assert ax.get_xscale() == ax.get_yscale() == "log"


@pytest.mark.parametrize(
    "names",
    [None, {f"{budget.group}/best": budget.group for budget in BUDGETS}],
    ids=["published", "ours too"],
)
@pytest.mark.parametrize("x", ["macs", pytest.param("parameters", marks=pytest.mark.slow)])
def test_names_do_not_cover_each_other(board, x, names):
    figure = plot_frontier(board, x, names=names).figure
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [
            text.get_window_extent().shrunk(1, 0.8)
            for text in axes.texts
            if text.get_text().strip()
        ]
        assert sum(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k]) == 0
        assert all(box.x1 < axes.bbox.x1 + 1 for box in boxes)


def test_latencies_are_quartiles_of_calls_in_turns(monkeypatch):
    """A clock of our own: the calls of two networks take 1 to 10 ms, in the order in which they
    have to be made."""
    taken = {"conv4/4 gap": (1, 2, 10, 4, 5, 3), "conv4/4 flat": (6, 9, 7, 8, 9, 9)}
    turns = [
        taken[name][3 * turn + call] for turn in range(2) for name in taken for call in range(3)
    ]
    ticks = (tick for k, ms in enumerate(turns) for tick in (k, k + ms / 1e3))
    monkeypatch.setattr(
        sys.modules[measure_latency.__module__],
        "time",
        SimpleNamespace(perf_counter=ticks.__next__),
    )
    found = measure_latency(list(taken), rounds=2, calls=3)
    assert next(ticks, None) is None and found["calls"] == 6 and found["unit"] == "ms for one image"
    # by hand, between the sorted times
    assert found["quartiles"] == {
        "conv4/4 gap": [2.25, 3.5, 4.75],
        "conv4/4 flat": [7.25, 8.5, 9.0],
    }
    assert json.loads(json.dumps(found)) == found and found["device"]


def test_what_is_timed_is_the_network():
    model, image = build_model("conv4/4 gap"), np.zeros((1, 28, 28, 1), np.float32)
    np.testing.assert_allclose(_compiled(model)(), model.predict_on_batch(image), atol=1e-5)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"quartiles": {"a": [1, 2]}}', '{"quartiles": {"a": 3}}']
)
def test_damaged_latencies(text, tmp_path):
    assert load_latency(tmp_path) == {}
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(FashionNbError, match="latency.json cannot be read .*: measure again"):
        load_latency(tmp_path)


def test_rows_without_a_latency_are_left_out(board):
    ax = plot_frontier(board.assign(latency=pd.Series([1.5], index=[3])), "latency")
    assert sum(len(line.get_xydata()) for line in ax.lines if line.get_marker() == "o") == 1


def test_the_time_of_teachers_counts_each_once(tmp_path):
    seconds = {
        record.name: record.details["seconds"]
        for record in [*load_records("teacher"), *load_records("search")]
    }
    assert teacher_seconds("none") == 0
    assert teacher_seconds("wide=0.5") == teacher_seconds("wide=1") == seconds["teacher/wide-seed0"]
    # which 'wide' has taught
    assert teacher_seconds("pair=0.7") == pytest.approx(
        seconds["teacher/wide-seed0"] + seconds["search/31m_again-seed0"]
    )
    shutil.copytree(store_folder() / "teachers", tmp_path / "teachers")
    assert np.isnan(teacher_seconds("pair=0.7", tmp_path))
    with pytest.raises(
        FashionNbError, match="soft labels .nobody. cannot be read .*: restore nobody.json"
    ):
        teacher_seconds("nobody=0.5", tmp_path)


def test_the_fastest_has_three_seeds_and_the_mean():
    columns = ["row", "mean", "seeds", "seconds", "teacher", "std", "device"]
    rows = [
        ["few", 0.99, 2, 1.0, "none", 0, "x"],
        ["slow", 0.95, 3, 9.0, "none", 0, "x"],
        ["fast", 0.94, 5, 5.0, "none", 0, "x"],
        ["else", 0.97, 5, 1.0, "none", 0, "y"],
        ["taught", 0.95, 3, 2.0, "wide=0.5", 0, "x"],
    ]
    table = pd.DataFrame(rows, columns=columns)
    found = fastest(table, [0.9, 0.94, 0.945, 0.96], "x")
    # the teacher's time is owed by 'taught'
    assert list(found.row.fillna("-")) == ["fast", "fast", "slow", "-"]
    table.loc[1, "seconds"] = 3 + teacher_seconds("wide=0.5")
    found = fastest(table, [0.945], "x").iloc[0]
    assert found.row == "taught" and found.total == pytest.approx(
        found.seconds + teacher_seconds("wide=0.5")
    )
    assert (
        fastest(table, [0.945], "x", taught=False).row[0] == "slow"
        and fastest(table, [0.9], "y").row[0] == "else"
    )


@pytest.mark.parametrize(
    "seconds, first", [([9.0, 4.0, 6.0, 5.0], 4.0), ([3.0, 4.0], 0.0), ([7.0], 0.0)]
)
def test_the_warm_up_is_what_the_first_epoch_took_longer(seconds, first):
    assert warm_up(seconds) == warm_up(np.array(seconds)) == first


def test_the_record_is_timed_without_its_warm_up():
    rows = timed_runs("record")
    assert list(rows.groupby("row").size()) == [10] * len(GRIDS["record"].rows) and set(
        rows.row
    ) == set(GRIDS["record"].rows)
    labels, stored = load_fashion_mnist().test.labels, {
        (record.row.partition("/")[2], record.config.seed): record
        for record in load_records("record")
    }
    for row in rows.itertuples():
        record = stored[row.row, row.seed]
        first, *others = [epoch["seconds"] for epoch in record.details["history"]]
        assert row.accuracy == np.mean(record.probabilities.argmax(1) == labels)
        assert row.seconds == pytest.approx(sum(others) + min(first, np.median(others)), abs=0.02)
    with pytest.raises(StoreError, match="no stored results of 'none'"):
        timed_runs("none")
    with pytest.raises(StoreError, match="other test images"):
        timed_runs("record", data=made_data(100))


@pytest.mark.parametrize("name", pretrained_names())
def test_what_the_package_brings_is_what_the_store_knows(name):
    record = next(record for record in load_records(name) if record.name == f"{name}/best-seed0")
    answers = load_pretrained(name).predict(
        load_fashion_mnist().test.images[:1_000], batch_size=500, verbose=0
    )
    # weights and answers have two bytes each
    np.testing.assert_allclose(answers, record.probabilities[:1_000], atol=0.02)
