"""Grids of runs: what is stored is not trained, what was cut off goes on, what fails stops nobody;
and the verbs for it."""
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import made_data, made_split

import fashion_nb.evaluation.evaluation
import fashion_nb.experiments.grid
import fashion_nb.experiments.leaderboard
import fashion_nb.experiments.store
import fashion_nb.training.loop
import fashion_nb.training.parallel
from fashion_nb.cli.main import cli, run
from fashion_nb.core.errors import FashionNbError
from fashion_nb.experiments import leaderboard as leaderboard_room
from fashion_nb.experiments import published as published_room
from fashion_nb.experiments import store as store_room
from fashion_nb.experiments.grid import (
    GRIDS,
    ExperimentError,
    Grid,
    gains,
    grid_configs,
    grid_from_file,
    grid_runs,
    grid_table,
    plot_grid,
    plot_scale,
    run_grid,
)
from fashion_nb.experiments.leaderboard import run_experiment
from fashion_nb.experiments.store import Record, StoreError, load_records
from fashion_nb.models.zoo import build_model
from fashion_nb.training import learner as learner_room
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.runs import list_runs
from fashion_nb.training.schedules import TrainError

TINY = {"model": "conv8/4 conv8/2 flat", "epochs": 2, "batch_size": 50, "validation_size": 40}
GRID = Grid(
    "Does the rate matter?",
    {"slow": {"learning_rate": 0.001}, "fast": {"learning_rate": 0.01}},
    TINY,
    seeds=2,
)
NAMES = ["tried/slow-seed0", "tried/fast-seed0", "tried/slow-seed1", "tried/fast-seed1"]


@pytest.fixture(autouse=True)
def grid(monkeypatch):
    monkeypatch.setitem(GRIDS, "tried", GRID)


def done(folder, configs="tried", **options):
    return run_grid(
        configs, folder / "store", folder / "runs", data=made_data(), progress=False, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The grid in one go, and what it gave."
    folder = tmp_path_factory.mktemp("whole")
    return folder, done(folder, GRID.configs("tried"))


def without(whole, folder, *names, runs=True):
    "A copy of the whole grid without some of its records, and without their runs."
    for part in ("store", "runs"):
        shutil.copytree(whole[0] / part, folder / part)
    for name in names:
        for ending in ("json", "npz"):
            (folder / "store" / f"{name}.{ending}").unlink()
        if runs:
            (place,) = (folder / "runs").glob(f"*{GRID.configs('tried')[name].identity}")
            shutil.rmtree(place)
    return folder


def stored(folder):
    return sorted(record.name for record in load_records(folder=folder / "store"))


def assert_same_records(one, other, exactly=True):
    "Two stores hold the same runs with the same answers and logs; only times may differ."
    assert stored(one) == stored(other)
    for a, b in zip(load_records(folder=one / "store"), load_records(folder=other / "store")):
        logs = [each.history.drop(columns="seconds").to_numpy() for each in (a, b)]
        tolerance = 0 if exactly else 1e-3  # another number of threads sums in another order
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=tolerance, rtol=0)
        np.testing.assert_allclose(*logs, atol=tolerance, rtol=0)
        assert (
            a.config == b.config
            and a.details["metrics"]["right"] == b.details["metrics"]["right"]
            and a.details["data"] == b.details["data"]
        )


class Trainings:
    "Count trainings, and let one of them go wrong."

    def __init__(self, monkeypatch, at=None, error=None):
        self.count, real = 0, fashion_nb.training.parallel.train

        def counted(*arguments, **options):
            self.count += 1
            if at in (self.count, "all"):
                raise error
            return real(*arguments, **options)

        monkeypatch.setattr(fashion_nb.training.parallel, "train", counted)


# The grids of the book


# What the runs of a grid differ in, besides the seed: what its question is about, and nothing else.
VARIED = {
    "published_nets": {"model"}, "defaults": {"model"}, "fashon_recipe": {"model"},
    "published_short": {"augmentation", "batch_size", "model"},
    "published_recipe": {"augmentation", "batch_size", "epochs", "model", "precision"},
    "augmentation": {"augmentation"},
    "normalisation": {"model"}, "filters": {"model"}, "dense": {"model"}, "epochs": {"epochs"},
    "optimizer": {"learning_rate", "optimizer"},
    "ablation": {"augmentation", "average", "label_smoothing", "model", "optimizer", "schedule",
        "teacher", "warmup_epochs"},
    "blocks": {"model"}, "search": {"augmentation", "epochs", "learning_rate", "model", "precision",
        "teacher", "warmup_epochs", "weight_decay"},
    "record_search": {"augmentation", "epochs", "label_smoothing", "learning_rate", "model",
        "optimizer", "schedule", "warmup_epochs", "weight_decay"},
    "record": {"augmentation", "epochs", "label_smoothing", "learning_rate", "optimizer",
        "schedule", "warmup_epochs", "weight_decay"},
    "search_again": {"augmentation", "model"},
}  # fmt: skip


@pytest.mark.parametrize("group", list(GRIDS))
def test_the_runs_of_a_grid_differ_in_what_it_asks_about(group):
    runs = [
        {**json.loads(config.to_json()), "seed": None} for config in grid_configs(group).values()
    ]
    assert {
        key for run in runs for key, value in run.items() if value != runs[0][key]
    } == VARIED.get(group, set())


@pytest.mark.parametrize("group", list(GRIDS))
def test_what_is_stored_is_what_the_grid_says_now(group):
    "Whoever changes a grid, or stores a run under another's name, is told."
    configs, records = grid_configs(group), load_records(group)
    assert records and {record.name: record.config for record in records} == {
        record.name: configs.get(record.name) for record in records
    }


@pytest.mark.parametrize("group", list(GRIDS))
def test_a_grid_is_sound(group):
    grid, configs = GRIDS[group], grid_configs(group)
    assert (
        grid.question.endswith("?")
        and grid.seeds >= (
            1 if group in ("search", "teacher", "record_search", "search_again") else 3
        )
        and len(configs) == grid.seeds * len(grid.rows)
    )
    assert len({config.identity for config in configs.values()}) == len(configs)
    for name, config in configs.items():
        found = store_room._NAME.fullmatch(name)
        assert found["row"].startswith(f"{group}/") and int(found["seed"]) == config.seed
        assert TrainConfig.from_json(config.to_json()) == config
        assert all(
            getattr(config, key) == value
            for key, value in grid.rows[found["row"].partition("/")[2]].items()
        )


@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_each_network_of_the_grids_can_be_built(step):
    models = {config.model for group in GRIDS for config in grid_configs(group).values()}
    for model in sorted(models)[::step]:
        assert tuple(build_model(model).output_shape) == (None, 10), model


def test_an_unknown_grid():
    with pytest.raises(
        ExperimentError, match="there is no grid 'none': expected one of published_nets, "
    ):
        grid_configs("none")
    with pytest.raises(ExperimentError):
        run_grid("none")


# Grids in files

YAML = """
question: Does the rate matter?
base: {model: conv8/4 conv8/2 flat, epochs: 2, batch_size: 50, validation_size: 40}
rows:
  slow: {learning_rate: 1e-3}
  fast:
    learning_rate: 0.01
seeds: 2
"""


def written(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def test_a_grid_from_yaml_or_json_is_the_grid_written_in_python(tmp_path):
    assert grid_from_file(written(tmp_path, "mine.yaml", YAML)) == (
        "mine",
        GRID,
    ) and grid_from_file(written(tmp_path, "x.YML", YAML + "name: other")) == ("other", GRID)
    as_json = json.dumps(
        {"question": GRID.question, "base": TINY, "rows": GRID.rows, "seeds": 2}, indent="\t"
    )
    assert grid_from_file(str(written(tmp_path, "also_mine.json", as_json))) == ("also_mine", GRID)
    assert grid_runs(str(tmp_path / "mine.yaml")) == GRID.configs("mine") and grid_runs(
        "tried"
    ) == grid_configs("tried") == GRID.configs("tried")
    name, least = grid_from_file(written(tmp_path, "least.yml", "rows: {default: }"))
    assert least.configs(name) == {
        f"least/default-seed{seed}": TrainConfig(seed=seed) for seed in range(3)
    }
    assert grid_from_file(
        written(
            tmp_path,
            "again.yaml",
            "base: &all {epochs: 2}\nrows: {a: {<<: *all, seed: 1}, b: {}}".replace(
                ", seed: 1", ", batch_size: 9"
            ),
        )
    )[1].rows["a"] == {"epochs": 2, "batch_size": 9}


FILES = {
    "cut.yaml": ("rows: [a", "it is not YAML: .* in line 1"),
    "tab.yaml": ("rows:\n\ta: {}", "it is not YAML: .* in line 2"),
    "object.yaml": ("!!python/object/apply:os.getcwd []",
        "it is not YAML: could not determine a constructor"),
    "cut.json": ("{", "it is not JSON: "),
    "deep.json": ("[" * 100_000, "recursion"),
    "bytes.yaml": (b"\xff\xfe\xff", "."),
    "empty.yaml": ("", "it is empty: expected rows, and perhaps name, question, base and seeds"),
    "list.json": ("[]", "it is a list: expected rows"),
    "norows.yaml": ("base: {epochs: 2}", "it has the parts base: expected rows"),
    "more.yaml": ("rows: {a: {}}\nseed: 2", "it has the parts rows, seed: expected rows"),
    "emptyrows.yaml": ("rows: {}", "its rows cannot be used: expected at least one name"),
    "listed.yaml": ("rows: [a, b]", "its rows cannot be used"),
    "bool.yaml": ("rows: {on: {epochs: 2}}", "its rows cannot be used: .*in quotes"),
    "value.yaml": ("rows: {a: 3}", "its rows cannot be used"),
    "twice.yaml": ("rows: {a: {epochs: 1}, a: {epochs: 2}}", "'a' stands in it twice"),
    "twice.json": ('{"rows": {"a": {"epochs": 1, "epochs": 2}}}', "'epochs' stands in it twice"),
    "nothing.yaml": ("rows: {a: {}}\nbase:", "base is None: expected settings"),
    "question.yaml": ("rows: {a: {}}\nquestion: 3", "question is 3: expected a text"),
    "named.yaml": ("rows: {a: {}}\nname: 3", "name is 3: expected a text"),
    **{f"seeds{k}.yaml": (f"rows: {{a: {{}}}}\nseeds: {value}",
        "seeds is .*: expected how many") for k,
        value in enumerate(("0", "-1", "1.5", "yes", "[1]", "'3'", ""))},
    "field.yaml": ("rows: {a: {epoch: 3}}",
        "in the row 'a' the configuration has the unknown field epoch"),
    "setting.yaml": ("base: {epochs: ten}\nrows: {a: {}}", "in the row 'a' epochs is 'ten'"),
    "model.yaml": ("rows: {a: {}, b: {model: resnet}}", "in the row 'b' model is 'resnet'"),
    "date.yaml": ("rows: {a: {epochs: 2020-01-01}}", "in the row 'a' epochs is '2020-01-01'"),
    "seeded.yaml": ("rows: {a: {seed: 1}}", "the row 'a' sets the seed: expected 'seeds'"),
    "same.yaml": ("rows: {a: {}, b: {epochs: 6}}", "the rows 'a' and 'b' have the same settings"),
    "row.yaml": ("rows: {Small One: {}}", "'row/Small One-seed0' cannot name a stored result"),
    "My Grid.yaml": ("rows: {a: {}}", "'My Grid/a-seed0' cannot name a stored result"),
    "optimizer.yaml": ("rows: {a: {}}", "the name 'optimizer' is taken"),
    "teachers.yaml": ("rows: {a: {}}", "the name 'teachers' is taken"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_grid_is_refused_in_one_sentence(name, tmp_path):
    content, complaint = FILES[name]
    path = written(tmp_path, name, content)
    for ask in (
        grid_from_file,
        lambda path: grid_runs(str(path)),
        lambda path: run_grid(str(path), tmp_path / "store", tmp_path / "runs", data=made_data()),
    ):
        with pytest.raises(
            ExperimentError,
            match=f"^{re.escape(str(path))} cannot be used as a grid: .*{complaint}",
        ) as error:
            ask(path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for name, why in (("none.json", "No such file"), ("folder.yaml", "Is a directory")):
        with pytest.raises(ExperimentError, match=f"{name} cannot be used as a grid: {why}"):
            grid_runs(str(tmp_path / name))
    with pytest.raises(
        ExperimentError,
        match=(
            "there is no grid 'mine.toml': expected one of published_nets, .*, or a file of your"
            " own that ends in .json, .yaml, .yml"
        ),
    ):
        grid_runs("mine.toml")


def test_the_grid_of_a_file_is_trained_and_stored(whole, tmp_path):
    "From the trainings of the same settings, which are not repeated."
    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    found = run_grid(
        str(written(tmp_path, "mine.yaml", YAML)),
        tmp_path / "store",
        tmp_path / "runs",
        data=made_data(),
        progress=False,
    )
    assert (
        stored(tmp_path) == sorted(found) == sorted(name.replace("tried", "mine") for name in NAMES)
    )
    assert [record.config for record in found.values()] == list(GRID.configs("mine").values())


# Running one


def test_a_grid_is_trained_and_stored(whole):
    folder, found = whole
    assert list(found) == NAMES and all(isinstance(record, Record) for record in found.values())
    assert stored(folder) == sorted(NAMES) and [record.name for record in found.values()] == NAMES
    assert {record.config.learning_rate for record in found.values()} == {0.001, 0.01}
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir()) == sorted(
        run.folder.name for run in list_runs(folder / "runs")
    )


def test_the_second_time_nothing_is_trained(whole, monkeypatch):
    folder, found = whole
    monkeypatch.setattr(
        fashion_nb.experiments.grid, "train_many", lambda *_, **__: pytest.fail("it was trained")
    )
    monkeypatch.setattr(
        fashion_nb.experiments.grid, "store_run", lambda *_, **__: pytest.fail("it was stored")
    )
    again = done(folder)
    assert {name: record.details for name, record in again.items()} == {
        name: record.details for name, record in found.items()
    }


def test_records_of_other_images_are_neither_answers_nor_lost(whole, monkeypatch):
    folder, _ = whole
    monkeypatch.setattr(
        fashion_nb.experiments.grid,
        "train_many",
        lambda configs, *_, **__: [pytest.fail("it was trained") for _ in configs],
    )
    before, told = {path: path.read_bytes() for path in (folder / "store").rglob("*.*")}, []
    outcomes = run_grid(
        "tried",
        folder / "store",
        folder / "runs",
        data=replace(made_data(), test=made_split(50, 7)),
        progress=False,
        tell=lambda *both: told.append(both),
    )
    assert (
        all("is stored already, with other images" in str(outcome) for outcome in outcomes.values())
        and told == list(outcomes.items())
        and list(outcomes) == NAMES
    )
    assert {path: path.read_bytes() for path in (folder / "store").rglob("*.*")} == before


def test_a_grid_that_was_cut_off_between_runs_goes_on(whole, tmp_path, monkeypatch):
    without(whole, tmp_path, *NAMES[2:])
    with monkeypatch.context() as patch:
        Trainings(patch, at=2, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            done(tmp_path)
    assert stored(tmp_path) == sorted(NAMES[:3])
    trainings = Trainings(monkeypatch)
    assert list(done(tmp_path)) == NAMES and trainings.count == 1
    assert_same_records(tmp_path, whole[0])


def test_a_run_that_was_cut_off_goes_on(whole, tmp_path, monkeypatch):
    def stop(watcher, history):
        raise KeyboardInterrupt

    without(whole, tmp_path, NAMES[1])
    with monkeypatch.context() as patch:
        patch.setattr(learner_room.Watcher, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            done(tmp_path)
    assert len(stored(tmp_path)) == 3 and sorted(
        run.status for run in list_runs(tmp_path / "runs")
    ) == ["finished"] * 3 + ["interrupted"]
    found = done(tmp_path)
    assert [record.details["sessions"] for record in found.values()] == [1, 2, 1, 1]
    assert_same_records(tmp_path, whole[0])


ERRORS = [
    TrainError("the loss is nan"),
    pytest.param(RuntimeError("out of memory\nand more"), marks=pytest.mark.slow),
    ValueError(""),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_run_that_fails_does_not_stop_the_others(error, whole, tmp_path, monkeypatch):
    without(whole, tmp_path, *NAMES[1:3])
    with monkeypatch.context() as patch:
        Trainings(patch, at=1, error=error)
        found = done(tmp_path)
    assert (
        list(found) == NAMES
        and isinstance(found[NAMES[1]], FashionNbError)
        and "\n" not in str(found[NAMES[1]])
    )
    assert str(error).split("\n")[0] in str(found[NAMES[1]])
    assert stored(tmp_path) == sorted(set(NAMES) - {NAMES[1]})
    assert isinstance(done(tmp_path)[NAMES[1]], Record)
    assert_same_records(tmp_path, whole[0])


def test_settings_that_cannot_be_trained_here(tmp_path):
    configs = {
        "tried/taught-seed0": TrainConfig(**TINY, teacher="nobody=0.5"),
        "tried/plain-seed0": TrainConfig(**TINY),
        "tried/large-seed0": TrainConfig(**TINY | {"validation_size": 59_000}),
    }
    found = done(tmp_path, configs)
    assert isinstance(found["tried/taught-seed0"], TrainError) and isinstance(
        found["tried/large-seed0"], FashionNbError
    )
    assert stored(tmp_path) == ["tried/plain-seed0"]


def test_all_fail(tmp_path, monkeypatch):
    Trainings(monkeypatch, at="all", error=TrainError("no"))
    assert [str(outcome) for outcome in done(tmp_path).values()] == ["no"] * 4 and stored(
        tmp_path
    ) == []


def test_what_could_not_be_stored_is_stored_later_without_training(whole, tmp_path, monkeypatch):
    write = fashion_nb.experiments.store.write_atomically

    def full(path, content):
        if "fast-seed0" in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    without(whole, tmp_path, NAMES[1], runs=False)
    with monkeypatch.context() as patch:
        patch.setattr(fashion_nb.experiments.store, "write_atomically", full)
        found = done(tmp_path)
    assert (
        isinstance(found[NAMES[1]], StoreError)
        and "No space left" in str(found[NAMES[1]])
        and len(stored(tmp_path)) == 3
    )
    no_training = lambda *_: pytest.fail("it was trained")  # noqa: E731
    monkeypatch.setattr(fashion_nb.training.loop, "make_learner", no_training)
    assert isinstance(done(tmp_path)[NAMES[1]], Record)
    assert_same_records(tmp_path, whole[0])


@pytest.mark.parametrize("name", ["fast", "tried/Fast-seed0", "tried/fast-seed1"])
def test_names_are_checked_before_anything_is_trained(name, tmp_path, monkeypatch):
    trainings = Trainings(monkeypatch)
    with pytest.raises(StoreError, match="cannot name"):
        done(
            tmp_path,
            {
                "tried/good-seed0": TrainConfig(**TINY),
                name: TrainConfig(**TINY, learning_rate=0.02),
            },
        )
    assert trainings.count == 0 and not (tmp_path / "store").exists()


def test_a_run_under_another_name_is_found(whole, monkeypatch):
    monkeypatch.setattr(
        fashion_nb.experiments.grid, "train_many", lambda *_, **__: pytest.fail("it was trained")
    )
    found = done(whole[0], {"mine/again-seed0": GRID.configs("tried")[NAMES[0]]})
    assert found["mine/again-seed0"].name == NAMES[0]


def test_an_empty_grid(tmp_path):
    assert done(tmp_path, {}) == {} and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2", True])
def test_jobs_are_checked(jobs, tmp_path):
    with pytest.raises(FashionNbError, match="jobs is .*: expected a whole number from 1"):
        done(tmp_path, jobs=jobs)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_two_processes_give_the_same_records(whole, tmp_path):
    found = done(tmp_path, jobs=2)
    assert list(found) == NAMES and all(isinstance(record, Record) for record in found.values())
    assert_same_records(tmp_path, whole[0], exactly=False)


# Its table and its picture


def test_the_table_of_a_grid(whole, tmp_path):
    table = grid_table("tried", whole[0] / "store", made_data())
    assert table.row.tolist() == ["slow", "fast"] and table.seeds.tolist() == [2, 2]
    assert table["mean"].tolist() == pytest.approx([
        np.mean([whole[1][name].details["metrics"]["hit_rate"] for name in NAMES if row in name])
        for row in ("slow", "fast")
    ])
    with pytest.raises(
        ExperimentError,
        match="no run of 'tried' is stored: train them with 'fashion_nb experiments run tried'",
    ):
        grid_table("tried", tmp_path, made_data())
    with pytest.raises(ExperimentError):
        grid_table("none", tmp_path, made_data())


def test_the_picture_of_a_grid(whole):
    import matplotlib.pyplot as plt

    table = grid_table("tried", whole[0] / "store", made_data())
    ax = plot_grid(table, published={"fast": 0.5})
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "slow",
        "fast",
    ] and ax.get_xlabel() == "test accuracy"
    points = [
        tuple(line.get_xdata())
        for line in ax.lines
        if len(line.get_xdata()) == 2 and line.get_marker() == "o"
    ]
    assert points == table.rates.tolist()
    own = plt.figure().add_subplot()
    assert plot_grid(table, own) is own
    plt.close("all")


def test_the_line_of_a_scale_joins_what_it_is_told(whole):
    import matplotlib.pyplot as plt

    table = grid_table("tried", whole[0] / "store", made_data())
    joined = [
        line
        for line in plot_scale(table, "macs", "MACs", line=["fast"]).lines
        if line.get_linestyle() == "-"
    ]
    assert [line.get_xydata().tolist() for line in joined] == [
        [[one.macs, one.mean] for one in table[table.row == "fast"].itertuples()]
    ]
    plt.close("all")


def test_gains_pair_the_seeds(whole):
    table = grid_table("tried", whole[0] / "store", made_data())
    swapped = table.copy()
    for column in ("seed_numbers", "rates", "held_out"):
        swapped.at[0, column] = swapped.at[0, column][::-1]
    pd.testing.assert_frame_equal(gains(swapped, "fast"), gains(table, "fast"))
    (one,) = gains(table, "fast").itertuples()
    slow, fast = (np.array(table.held_out[place], float) for place in (0, 1))
    assert (one.row, one.seeds) == ("slow", 2) and one.gain == pytest.approx(
        100 * (slow - fast).mean()
    )
    assert one.high - one.gain == pytest.approx(
        12.7062 * 100 * (slow - fast).std(ddof=1) / 2**0.5, rel=1e-4, abs=1e-9
    )
    with pytest.raises(
        ExperimentError, match="there is no row 'none' to compare with: expected one of slow, fast"
    ):
        gains(table, "none")


# At the prompt


@pytest.fixture
def shell(monkeypatch, capsys):
    "The command on the made data: its status, what it printed, and what it said on standard error."
    for module in (
        fashion_nb.experiments.grid,
        fashion_nb.experiments.leaderboard,
        fashion_nb.experiments.store,
        fashion_nb.training.loop,
        fashion_nb.evaluation.evaluation,
    ):
        monkeypatch.setattr(module, "load_fashion_mnist", lambda *_, **__: made_data())
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def typed(*arguments):
        try:
            status = run(cli, [str(one) for one in arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return typed


def test_the_grids_are_listed(whole, shell, tmp_path):
    status, said, _ = shell("experiments", "list", "--results", whole[0] / "store")
    lines = said.splitlines()
    assert status == 0 and len(lines) == len(GRIDS)
    for line, (name, grid) in zip(lines, GRIDS.items()):
        assert re.fullmatch(
            rf"{name} +{4 if name == 'tried' else 0} of +{len(grid_configs(name))} stored "
            rf" {re.escape(grid.question)}",
            line,
        )
    assert f"{0:>3} of   4 stored" in shell("experiments", "list", "--results", tmp_path / "new")[1]


def test_a_grid_at_the_prompt(whole, shell, tmp_path):
    without(whole, tmp_path, *NAMES[2:])
    asked = (
        "experiments",
        "run",
        "tried",
        "--results",
        tmp_path / "store",
        "--runs",
        tmp_path / "runs",
    )
    status, first, _ = shell(*asked)
    rates = {
        record.name: record.details["metrics"]["hit_rate"]
        for record in load_records(folder=tmp_path / "store")
    }
    how = ["stored before"] * 2 + ["new"] * 2
    assert status == 0 and first.splitlines() == [
        f"{name}  {word}, {rates[name]:.2%} on test" for name, word in zip(NAMES, how)
    ]
    assert shell(*asked)[:2] == (0, first.replace("new", "stored before"))
    assert_same_records(tmp_path, whole[0])


def test_a_failure_at_the_prompt(whole, shell, tmp_path, monkeypatch):
    without(whole, tmp_path, *NAMES[2:])
    Trainings(monkeypatch, at=1, error=TrainError("there is no luck: expected some"))
    status, said, _ = shell(
        "experiments", "run", "tried", "--results", tmp_path / "store", "--runs", tmp_path / "runs"
    )
    assert (
        status == 1
        and said.splitlines()[2] == f"{NAMES[2]}  failed: there is no luck: expected some"
    )
    assert said.splitlines()[3].startswith(f"{NAMES[3]}  new, ") and len(stored(tmp_path)) == 3


def test_ctrl_c_at_the_prompt_keeps_what_is_done(whole, shell, tmp_path, monkeypatch):
    without(whole, tmp_path, *NAMES[2:])
    Trainings(monkeypatch, at=2, error=KeyboardInterrupt())
    status, said, complaint = shell(
        "experiments", "run", "tried", "--results", tmp_path / "store", "--runs", tmp_path / "runs"
    )
    assert (
        status == 130
        and said.splitlines()[-1].startswith(f"{NAMES[2]}  new")
        and complaint.splitlines()[-1] == "fashion_nb: interrupted"
    )
    assert stored(tmp_path) == sorted(NAMES[:3])


@pytest.mark.slow
def test_two_processes_at_the_prompt(whole, shell, tmp_path):
    without(whole, tmp_path, *NAMES[2:], runs=False)
    status, said, _ = shell(
        "experiments",
        "run",
        "tried",
        "--jobs",
        2,
        "--results",
        tmp_path / "store",
        "--runs",
        tmp_path / "runs",
    )
    assert status == 0 and said.count("  new, ") == said.count("  stored before, ") == 2


def test_the_leaderboard_at_the_prompt(whole, shell):
    board = ("leaderboard", "--results", whole[0] / "store")
    status, said, _ = shell(*board)
    title, *lines = said.splitlines()
    assert status == 0 and all(word in title for word in ("row", "MACs", "parameters", "seeds",
        "mean ± std, %", "95 % interval", "epochs", "device"))
    table = leaderboard_room.leaderboard(folder=whole[0] / "store", data=made_data())
    assert [line.split()[0] for line in lines] == table.row.tolist() and table[
        "mean"
    ].is_monotonic_decreasing
    for line, row in zip(lines, table.itertuples()):
        assert (
            f"{row.macs:,}" in line
            and f"{row.parameters:,}" in line
            and f"{100 * row.low:.2f} to {100 * row.high:.2f}" in line
        )
        assert f"{100 * row.mean:.2f} ± {100 * row.std:.2f}" in line and row.device in line
    assert shell("leaderboard", "tried", *board[1:])[1] == said
    rows = json.loads(shell(*board, "--json")[1])
    assert list(rows) == ["rows"] and [row["mean"] for row in rows["rows"]] == pytest.approx(
        table["mean"].tolist(), abs=1e-14
    )
    both = json.loads(shell(*board, "--json", "--published")[1])
    assert both["rows"] == rows["rows"] and len(both["published"]) == len(
        published_room.PUBLISHED_POINTS
    )
    published = shell(*board, "--published")[1]
    assert published.startswith(said) and all(
        point.name in published and point.source in published
        for point in published_room.PUBLISHED_POINTS
    )
    assert "old data" in published and "second-hand" in published and "4,000,000,000" in published


def test_one_seed_has_no_deviation(shell, tmp_path):
    run_experiment(
        TrainConfig(**TINY),
        "tried/one-seed0",
        tmp_path / "store",
        tmp_path / "runs",
        made_data(),
        progress=False,
    )
    _, said, _ = shell("leaderboard", "--results", tmp_path / "store")
    assert "nan" not in said.lower() and re.search(r"± +-", said)
    assert (
        json.loads(shell("leaderboard", "--json", "--results", tmp_path / "store")[1])["rows"][0][
            "std"
        ]
        is None
    )


def test_an_empty_store_at_the_prompt(shell, tmp_path):
    assert shell("leaderboard", "--results", tmp_path)[:2] == (
        0,
        f"no stored results in {tmp_path}\n",
    )
    assert json.loads(shell("leaderboard", "--results", tmp_path, "--json")[1]) == {"rows": []}


def test_a_row_is_repeated_at_the_prompt(whole, shell, tmp_path):
    asked = ("--results", whole[0] / "store", "--runs", tmp_path)
    status, said, _ = shell("reproduce", "tried/slow", *asked)
    assert (
        status == 0
        and said.startswith("tried/slow-seed0: ")
        and "the same answer to every image" in said
    )
    status, said, _ = shell("reproduce", "tried/slow-seed1", *asked)
    assert status == 0 and said.startswith("tried/slow-seed1: ")


def test_a_difference_has_status_1(whole, shell, tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard_room.Reproduction, "agrees", False)
    status, said, _ = shell(
        "reproduce", "tried/slow", "--results", whole[0] / "store", "--runs", tmp_path
    )
    assert status == 1 and said.rstrip().endswith("more than chance explains")


BAD = [
    (["leaderboard", "none"], "there are no stored results of 'none': expected one of tried"),
    (["leaderboard", "tried", "more"], "unexpected extra argument"),
    (
        ["reproduce", "tried/none"],
        "there is no stored result 'tried/none': expected one of tried/fast, tried/slow",
    ),
    (["experiments", "run", "none"], "there is no grid 'none': expected one of published_nets"),
    (
        ["experiments", "run", "none.yaml"],
        "none.yaml cannot be used as a grid: No such file or directory",
    ),
    (["experiments", "run", "dense", "--jobs", "0"], "0 is not in the range"),
    (["experiments", "run", "dense", "--jobs", "two"], "'two' is not a valid integer"),
    (["experiments", "walk"], "No such command 'walk'"),
]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line_and_status_2(
    arguments, message, whole, shell, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, said, complaint = shell(
        *arguments, *(["--results", whole[0] / "store"] if arguments[-1] != "walk" else [])
    )
    assert (
        status == 2
        and not said
        and message in complaint
        and complaint.startswith("fashion_nb: ")
        and complaint.count("\n") == 1
    )
    assert list(tmp_path.iterdir()) == []


def test_stores_that_cannot_be_used(shell, tmp_path):
    (tmp_path / "file").write_text("")
    for verb, place in (
        (("leaderboard",), "none"),
        (("reproduce", "a/b"), "none"),
        (("leaderboard",), "file"),
        (("experiments", "run", "tried"), "file"),
        (("experiments", "run", "tried"), "file/in"),
    ):
        status, _, complaint = shell(*verb, "--results", tmp_path / place)
        assert (
            status == 2 and complaint.count("\n") == 1 and complaint.startswith("fashion_nb: ")
        ), (verb, place, complaint)
    (tmp_path / "store/tried").mkdir(parents=True)
    (tmp_path / "store/tried/slow-seed0.json").write_text("{")
    for verb in (
        ("leaderboard",),
        ("reproduce", "tried/slow"),
        ("experiments", "run", "tried"),
        ("experiments", "list"),
    ):
        status, _, complaint = shell(*verb, "--results", tmp_path / "store")
        assert (
            status == 2
            and "the stored result tried/slow-seed0 cannot be used" in complaint
            and complaint.count("\n") == 1
        )


def test_help_and_refusals_start_no_back_end(tmp_path):
    asked = [["leaderboard", "--help"], ["experiments", "--help"],
        ["experiments", "list", "--help"], ["experiments", "run", "--help"],
        ["reproduce", "--help"],
             # fmt: skip
             ["experiments", "list"], ["experiments", "run", "none"], ["reproduce", "none"],
             ["leaderboard", "none"], ["experiments", "run", "dense", "--results", "/dev/null/x"]]
    code = f"""
import sys
from fashion_nb.cli.main import cli, run
found = []
for words in {asked!r}:
    found.append(run(cli, words))
heavy = {{"keras", "tensorflow", "jax", "torch", "pandas", "matplotlib"}} & set(sys.modules)
sys.exit(f"{{heavy}} was imported" if heavy else found != [0] * 6 + [2] * 4)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    assert (
        answer.stderr.count("\n") == 4
        and answer.stdout.count("Example") == 5
        and list(tmp_path.iterdir()) == []
    )


def test_options_of_train_are_explained():
    from click.testing import CliRunner

    text = " ".join(CliRunner().invoke(cli, ["train", "--help"]).output.split())
    assert "--teacher TEXT" in text and "wide=0.5" in text and "conv16/2 res16 gap" in text
