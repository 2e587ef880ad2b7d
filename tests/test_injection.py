"""Names that strangers have chosen are shown and written as the texts that they are."""
import csv
import json

import numpy as np
import pytest
from commands import fashion_nb, in_a_process
from PIL import Image

EVIL = "a\x1b[2J\x07\u202egnp.evil"


@pytest.fixture(scope="module")
def pictures(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in (EVIL, "=cmd|calc", "@sum", "-1", "plain"):
        Image.fromarray(data.test.images[0, ..., 0]).save(folder / f"{name}.png")
    return folder


def test_no_name_reaches_the_terminal_as_a_command(pictures):
    for answer in (
        fashion_nb("predict", pictures),
        fashion_nb("predict", pictures / f"{EVIL}.png"),
        fashion_nb("predict", pictures / EVIL),
        fashion_nb("cost", EVIL),
        fashion_nb("runs", pictures / EVIL),
        fashion_nb("data", "--folder", pictures / EVIL),
    ):
        for text in (answer.stdout, answer.stderr):
            assert not any(mark in text for mark in "\x1b\x07\u202e")
        assert "\\x1b" in answer.stdout + answer.stderr


def test_json_holds_the_name_itself(pictures):
    answer = fashion_nb("predict", pictures / f"{EVIL}.png", "--json")
    (told,) = json.loads(answer.stdout)["predictions"]
    assert told["name"] == str(pictures / f"{EVIL}.png")


def test_no_cell_of_a_table_is_a_formula(pictures, tmp_path):
    answer = in_a_process(
        "predict", ".", "=cmd|calc.png", "@sum.png", "--output", tmp_path / "out.csv", cwd=pictures
    )
    assert answer.returncode == 0, answer.stderr
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as stream:
        names = [row["name"] for row in csv.DictReader(stream)]
    assert {"'=cmd|calc.png", "'@sum.png"} <= set(names)
    assert not any(name.startswith(("=", "@", "+", "-")) for name in names)


def test_layer_names_in_every_form_of_a_report(tmp_path):
    import keras

    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(4, name="=1+2|x"),
            keras.layers.Dense(2, name="<b>_{%}\\"),
        ],
        name="50 % of_a & {net}|#$~^\\",
    )
    model.save(tmp_path / "model.keras")
    texts = {}
    for kind in ("csv", "md", "tex", "html", "txt"):
        path = tmp_path / f"report.{kind}"
        answer = fashion_nb("cost", tmp_path / "model.keras", "--output", path)
        assert answer.returncode == 0, answer.stderr
        texts[kind] = path.read_text(encoding="utf-8")
    rows = list(csv.reader(texts["csv"].splitlines()))
    assert "'=1+2|x" in rows[1] and not any(cell[:1] in ("=", "@") for row in rows for cell in row)
    assert r"=1+2\|x" in texts["md"] and "<b>" not in texts["md"].replace("\\<b", "")
    caption = texts["tex"].split(r"\caption{", 1)[1].split("\n", 1)[0]
    assert r"50 \% of\_a \& \{net\}|\#\$\textasciitilde{}\textasciicircum{}" in caption
    assert "<b>_" not in texts["html"] and "&lt;b&gt;_" in texts["html"]


def test_long_arguments_are_shortened():
    answer = fashion_nb("cost", "x" * 5_000)
    assert answer.returncode == 2 and len(answer.stderr) < 600 and "…" in answer.stderr


def test_a_picture_of_no_numbers_raises_no_warning(tmp_path, recwarn):
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    answer = fashion_nb("predict", tmp_path / "nan.tiff")
    assert answer.returncode == 2 and "not finite" in answer.stderr
    assert answer.stderr.count("\n") == 1 and not [w for w in recwarn if "cast" in str(w.message)]


def test_an_old_file_is_opened_in_silence(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(),
        keras.layers.Dense(10)])
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / "old.h5")
    answer = in_a_process("cost", tmp_path / "old.h5")
    assert answer.returncode == 0 and not answer.stderr
