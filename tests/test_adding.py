"""What CONTRIBUTING.md says under 'Adding things', done as it stands there, used end to end and
taken away again."""
import dataclasses
import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from small_runs import made_data, saved_weights

from fashion_nb.analysis.cost import model_cost
from fashion_nb.cli import base as base_room
from fashion_nb.cli import main as _all_commands  # noqa: F401  each room adds its commands
from fashion_nb.cli import training_commands as training_commands_room
from fashion_nb.experiments.store import load_records
from fashion_nb.models.words import BLOCKS, ModelError, block_table, is_description
from fashion_nb.models.zoo import MODELS, build_model, list_models, model_info
from fashion_nb.training import config as settings
from fashion_nb.training.augment import (
    AUGMENTATIONS,
    AugmentError,
    augmented,
    draw_augmentation,
    parse_augmentation,
    targets,
)
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train
from fashion_nb.training.schedules import TrainError

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(title):
    "The language and the code of the one example under a heading that begins so."
    section = re.search(r"^## Adding things$(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)[1]
    (part,) = [
        part for part in re.split("^### ", section, flags=re.MULTILINE) if part.startswith(title)
    ]
    ((language, code),) = re.findall(r"^```(\w+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    return language, code


def done(title):
    "Run an example."
    language, code = example(title)
    assert language == "python"
    exec(compile(code, f"CONTRIBUTING.md, {title}", "exec"), {})


@pytest.fixture(autouse=True)
def as_before():
    "Nothing that a test registers is there for the next one."
    tables = AUGMENTATIONS, BLOCKS, MODELS
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before):
        table.clear()
        table.update(known)


def test_the_five_things_are_there_and_each_has_one_example():
    titles = re.findall(
        r"^### (.+)$", TEXT.split("## Adding things")[1].split("\n## ")[0], re.MULTILINE
    )
    assert [title.split(":")[0] for title in titles] == [
        "An augmentation",
        "A network word",
        "A named network",
        "A grid",
        "An option of training",
    ]
    assert [example(title)[0] for title in titles] == ["python"] * 3 + ["yaml", "python"]


def test_an_augmentation_trains_and_leaves_no_trace(tmp_path):
    images, index = made_data().train.images, np.arange(50, dtype=np.int32)
    base = TrainConfig(
        model="conv4/4 gap", epochs=1, batch_size=50, validation_size=40, augmentation="flip"
    )
    plain, before = train(base, tmp_path / "plain", made_data(), progress=False), draw_augmentation(
        "flip", index, np.random.default_rng(0)
    )
    with pytest.raises(AugmentError, match="'fade' is not an augmentation"):
        parse_augmentation("fade")

    done("An augmentation")
    with pytest.raises(AugmentError, match="none of .*fade"):
        done("An augmentation")  # a second time, without replace=True
    assert list(AUGMENTATIONS)[-1] == "fade" and parse_augmentation("fade+flip") == (
        ("flip", 0.5),
        ("fade", 0.5),
    )
    with pytest.raises(
        TrainError, match=r"fade=2 is not allowed: expected a number from 0 to 1 \(share, uniform"
    ):
        dataclasses.replace(base, augmentation="fade=2")
    choices = draw_augmentation("fade=0.8+flip", index, np.random.default_rng(0))
    # what was drawn before is drawn as before
    np.testing.assert_array_equal(choices["flip"], before["flip"])
    light = np.asarray(augmented(images, index, choices)).mean(axis=(1, 2, 3)) / images[index].mean(
        axis=(1, 2, 3)
    )
    np.testing.assert_allclose(light, choices["fade"], rtol=1e-5)
    assert light.min() < 0.3 and light.max() > 0.9
    np.testing.assert_array_equal(
        targets(made_data().train.labels, index, choices).argmax(axis=1),
        made_data().train.labels[index],
    )
    faded = train(
        dataclasses.replace(base, augmentation="flip+fade=0.8"),
        tmp_path / "faded",
        made_data(),
        progress=False,
    )
    assert saved_weights(faded.folder / "model.keras") != saved_weights(
        plain.folder / "model.keras"
    )

    del AUGMENTATIONS["fade"]
    with pytest.raises(AugmentError, match="'fade' is not an augmentation"):
        parse_augmentation("fade")
    again = train(base, tmp_path / "again", made_data(), progress=False)
    assert saved_weights(again.folder / "model.keras") == saved_weights(
        plain.folder / "model.keras"
    )


def test_a_word_and_a_name_are_built_counted_and_trained(tmp_path):
    with pytest.raises(ModelError, match="'ghost16/2' is no block: expected conv32"):
        build_model("ghost16/2 conv8 gap")
    assert not is_description("ghost16/2 ghost32/2") and "ghost_net" not in list_models()

    done("A network word")
    model = build_model("ghost16/2 ghost32/2 gap")
    # by hand: the half, its depthwise half, the answer
    ours = 14 * 14 * (9 * 8 + 9 * 8) + 7 * 7 * (9 * 16 * 16 + 9 * 16) + 32 * 10
    assert (
        model.output_shape == (None, 10)
        and model_cost(model).total.macs == ours
        and model_cost(model).unknown == []
    )
    assert (
        block_table()
        .set_index("word")
        .loc["ghost32", "what it builds"]
        .startswith("16 filters by a 3×3")
    )
    with pytest.raises(
        ModelError, match="'ghostx4' is no block: expected conv32, sep32, res32, inv32x4, ghost32"
    ):
        build_model("conv8 ghostx4 gap")
    with pytest.raises(ModelError, match=r"'valid' padding \(v\) is for conv only"):
        build_model("ghost16v gap")

    done("A named network")
    assert (
        list_models()[-1] == "ghost_net"
        and model_info("ghost_net").source == "after Han et al., 2020"
    )
    assert (
        build_model("ghost_net").name == "ghost_net"
        and model_cost(build_model("ghost_net")).total.macs == ours
    )
    run = train(
        TrainConfig(model="ghost_net", epochs=1, batch_size=50, validation_size=40),
        tmp_path / "run",
        made_data(),
        progress=False,
    )
    assert run.model().count_params() == model.count_params() and len(run.history) == 1

    del MODELS["ghost_net"], BLOCKS["ghost"]
    with pytest.raises(TrainError, match="there is no model 'ghost_net'"):
        TrainConfig(model="ghost_net")
    assert not block_table()["word"].str.contains("ghost").any()


def test_a_grid_is_a_file(tmp_path):
    language, text = example("A grid")
    path = tmp_path / f"rates.{language}"
    path.write_text(text, encoding="utf-8")
    arguments = [
        "experiments",
        "run",
        str(path),
        "--results",
        str(tmp_path / "mine"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert base_room.run(base_room.cli, arguments) == 0
    records = {record.name: record for record in load_records(folder=tmp_path / "mine")}
    assert sorted(records) == ["rates/large-seed0", "rates/small-seed0"]
    assert {record.config.learning_rate for record in records.values()} == {0.001, 0.01}
    assert {
        (record.config.model, record.config.epochs, record.config.batch_size)
        for record in records.values()
    } == {("bare raw conv4/4 gap", 1, 500)}
    stored = {
        each: each.stat().st_mtime_ns for each in (tmp_path / "mine").rglob("*") if each.is_file()
    }
    assert base_room.run(base_room.cli, arguments) == 0  # nothing is trained again
    assert {each: each.stat().st_mtime_ns for each in stored} == stored


def test_an_option_of_training_is_one_field(monkeypatch):
    language, line = example("An option of training")
    known = vars(settings) | {"Before": TrainConfig}
    exec(f"@dataclass(frozen=True)\nclass Longer(Before):\n{line}", known)
    Longer = known["Longer"]
    old = TrainConfig(seed=3)
    # the record of a package that has the line
    monkeypatch.setattr(settings, "TrainConfig", Longer)

    given = {}

    @click.command()
    @training_commands_room._options
    def probe(**typed):
        given["config"] = training_commands_room._config(typed)

    answer = CliRunner().invoke(probe, ["--help"]).output
    assert "--clip FLOAT" in answer and re.search(
        r"Longest gradient that is followed; 0\s+follows any\.\s+\[default: 0\]", answer
    )
    assert CliRunner().invoke(probe, ["--clip", "2.5", "--seed", "3"]).exit_code == 0
    assert (
        given["config"] == Longer(seed=3, clip=2.5)
        and json.loads(given["config"].to_json())["clip"] == 2.5
    )
    with pytest.raises(TrainError, match="^clip is 200: expected a number from 0 to 100$"):
        Longer(clip=200)
    assert Longer.from_json(old.to_json()) == Longer(seed=3)  # stored before there was this option
    assert Longer(seed=3).identity == old.identity != Longer(seed=3, clip=2.5).identity
