"""The command as somebody types it, with good and with bad input."""
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from commands import fashion_nb, in_a_process

from fashion_nb.analysis.report import CONVENTIONS
from fashion_nb.models.zoo import list_models


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "stride_3"], "there is no model 'stride_3': expected one of stride_1, stride_2"),
        (["field", "resnet"], "there is no model 'resnet'"),
        (
            ["cost", "stride_2", "--convention", "gmacs"],
            f"expected one of {', '.join(CONVENTIONS)}",
        ),
        (["cost"], "Missing argument 'MODEL...'"),
        (["cots", "stride_2"], "No such command 'cots'"),
        (
            ["data", "--folder", "/no/such/folder"],
            "/no/such/folder (the folder asked for) is not a folder",
        ),
        (["train", "--epochs", "ten"], "'ten' is not a valid integer"),
        (["train", "--epochs", "0"], "epochs is 0: expected a whole number from 1"),
        (["train", "--learning-rate", "-1"], "learning_rate is -1.0: expected a number above 0"),
        (["train", "--model", "stride_9"], "expected one of stride_1, stride_2"),
        (["train", "--validation-size", "60000"], "validation_size is 60000"),
        (["evaluate", "/no/such/run"], "/no/such/run does not exist"),
        (
            ["predict", "shoe.png", "--model", "budget_9m"],
            "no network 'budget_9m' comes with the package: expected one of budget_1m",
        ),
        (
            ["predict", "shoe.png", "--model", "no.keras"],
            "there is no file or folder no.keras: expected a run's folder, a .keras file, or",
        ),
        (["report", "--batch-size", "1.5"], "'1.5' is not a valid integer"),
        (["report", "--output", "/dev/null/report"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, message, tmp_path):
    answer = fashion_nb(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert message in answer.stderr and answer.stderr.startswith("fashion_nb: ")
    assert answer.stderr.count("\n") == 1 and "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


def test_a_process_refuses_wrong_input_as_the_tests_above_do(tmp_path):
    arguments = ("cost", "stride_3")
    answer, here = in_a_process(*arguments, cwd=tmp_path), fashion_nb(*arguments, cwd=tmp_path)
    found = [(one.returncode, one.stdout, one.stderr) for one in (answer, here)]
    assert found[0] == found[1] and answer.returncode == 2


def test_no_arguments_show_the_help():
    assert "Commands:" in fashion_nb().stderr


@pytest.mark.parametrize("verb", ["data", "models", "cost", "field", "train", "evaluate", "report"])
def test_each_verb_has_help_with_an_example(verb):
    answer = fashion_nb(verb, "--help")
    assert answer.returncode == 0
    assert f"fashion_nb {verb}" in answer.stdout.split("Example")[1]


def test_the_data_set_is_described():
    answer = fashion_nb("data", "--verify")
    assert answer.returncode == 0 and not answer.stderr
    assert "60,000 train, 10,000 test" in answer.stdout
    assert len(re.findall(r"sha256 [0-9a-f]{64}$", answer.stdout, re.M)) == 4


def test_a_damaged_cache_is_reported_in_one_line_and_mended(packed, tmp_path):
    cache = tmp_path / "cache"
    home = {
        "XDG_CACHE_HOME": str(cache),
        "HOME": str(tmp_path),
        "KERAS_HOME": str(tmp_path / "keras"),
    }
    place = tmp_path / "keras/datasets/fashion-mnist"
    place.mkdir(parents=True)
    for path in packed.iterdir():
        os.link(path, place / path.name)
    assert fashion_nb("data", **home).returncode == 0
    labels = cache / "fashion_nb" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    answer = fashion_nb("data", **home)
    assert (
        answer.returncode == 0 and answer.stderr.count("\n") == 1 and "set aside" in answer.stderr
    )


@pytest.mark.parametrize(("model", "ask"), [("stride_1", fashion_nb), ("stride_2", in_a_process)])
def test_costs_are_quiet_and_machine_readable(model, ask):
    answer = ask("cost", model, "--convention", "one_per_mac", "--json")
    report = json.loads(answer.stdout)
    assert not answer.stderr
    assert report["total"]["flops"] == sum(layer["flops"] for layer in report["layers"])


def test_models_are_listed_with_their_source():
    answer = fashion_nb("models")
    assert all(name in answer.stdout for name in list_models()) and answer.stdout.count(
        "Source:"
    ) == len(list_models())


class Page(HTMLParser):
    "What a page refers to, and the ids it has."

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.text = [], set(), text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag == "img":
            assert attributes.get("alt")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    return folder, in_a_process(
        "report", "--epochs", "1", "--validation-size", "45000", "--output", "page", cwd=folder
    )


def test_the_report_is_one_page_that_needs_no_other_file(reported):
    folder, answer = reported
    assert answer.returncode == 0, answer.stderr
    page = Page((folder / "page/index.html").read_text(encoding="utf-8"))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert sum(link.startswith("data:") for link in page.links) == 3
    assert "2,079,480" in page.text and "22,081,080" in page.text and "DIFFERENT" not in page.text


def test_the_reports_numbers_agree_with_each_other_and_with_the_terminal(reported):
    folder, answer = reported
    metrics = json.loads((folder / "page/metrics.json").read_text(encoding="utf-8"))
    evaluation = metrics["evaluation"]
    accuracy, report = answer.stdout.splitlines()[-2:]
    assert (
        f"{evaluation['hit_rate']:.2%} on test, 95 % interval {evaluation['interval']['low']:.2%}"
        in accuracy
    )
    assert "page/index.html" in report
    assert f"accuracy {evaluation['hit_rate']:.4f}" in (folder / "page/metrics.txt").read_text(
        encoding="utf-8"
    )
    assert evaluation["hit_rate"] > 0.7
    assert [row["equal"] for row in metrics["verification"]] == [True, True]
    assert len(metrics["history"]) == 1 and metrics["record"]["training_images"] == 15_000


def test_a_run_of_the_report_can_be_evaluated_again(reported):
    folder, _ = reported
    (run,) = (folder / "runs").iterdir()
    answer = fashion_nb("evaluate", run, "--output", folder / "again")
    first, again = (
        json.loads((folder / name / "metrics.json").read_text()) for name in ("page", "again")
    )
    assert answer.returncode == 0 and again["right"] == first["evaluation"]["right"]


SAYS_WHEN_IT_TRAINS = """
import os, signal, sys
from fashion_nb.cli.main import main
from fashion_nb.training.learner import Watcher

batch, (said, answered) = Watcher.batch, map(int, sys.argv[1:])

def batch_and_wait(watcher, epoch, number):
    batch(watcher, epoch, number)
    os.write(said, b".")
    os.read(answered, 1)  # until Ctrl-C was pressed; from then on there is nothing to read

Watcher.batch = batch_and_wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's `&`
main(["report", "--epochs", "2"])
"""


def test_ctrl_c_ends_with_status_130_and_keeps_no_half_report(tmp_path):
    (said, to_say), (answered, to_answer) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", SAYS_WHEN_IT_TRAINS, str(to_say), str(answered)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(to_say, answered),
    )
    os.close(to_say)
    os.close(answered)
    with open(said, "rb", buffering=0) as ear, open(to_answer, "wb", buffering=0):
        assert ear.read(1) == b"."  # it is between two steps
        process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 130 and "Traceback" not in complaint
    (record,) = (tmp_path / "runs").glob("*/record.json")
    folder = record.parent.relative_to(tmp_path)
    sentence = (
        f"fashion_nb: interrupted after 0 of 2 epochs, which {folder} keeps; resumes with:"
        " fashion_nb report --epochs 2"
    )
    assert complaint.splitlines()[-1] == sentence
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert not list((tmp_path / "report").iterdir())


# ---------------------------------------------------------------- any Keras model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A branching model in a file, one that wants to run code, one that is no model, and a file of
    another kind."""
    import keras
    from keras import layers

    folder = tmp_path_factory.mktemp("models")
    image = keras.Input((12, 12, 3), name="image")
    merged = layers.Add(name="sum")([
        layers.Conv2D(4, 3, padding="same", name="left")(image),
        layers.Conv2D(4, 1, name="right")(image),
    ])
    keras.Model(image, layers.GlobalAveragePooling2D(name="mean")(merged), name="branching").save(
        folder / "good.keras"
    )
    keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1)]).save(folder / "sly.keras")
    (folder / "broken.keras").write_bytes(b"PK no zip")
    (folder / "text.txt").write_text("no model")
    return folder


def test_a_saved_model_is_counted_and_verified(saved):
    answer = fashion_nb("cost", str(saved / "good.keras"), "--json")
    assert json.loads(answer.stdout)["total"]["macs"] == 144 * 4 * 3 * (9 + 1) and not answer.stderr
    answer = fashion_nb("cost", str(saved / "good.keras"), "--verify")
    assert (
        answer.returncode == 0 and "0 failures" in answer.stdout and "keras-flops" in answer.stdout
    )
    fields = json.loads(fashion_nb("field", str(saved / "good.keras"), "--json").stdout)
    assert {row["name"]: row["size"] for row in fields["layers"]}["sum"] == [3, 3]


def test_a_model_that_keras_ships(tmp_path):
    page = tmp_path / "mobile.html"
    answer = fashion_nb(
        "cost",
        "keras.applications.MobileNet",
        "--input-shape",
        "96,96,3",
        "--output",
        str(page),
        "--fold-batch-norm",
    )
    assert (
        answer.returncode == 0 and "conv_pw_13" in page.read_text() and "folded" in page.read_text()
    )


def test_derivation_and_comparison():
    assert (
        "12 · 12 · 40 · 3 · 3 · 20 = 1,036,800" in fashion_nb(
            "cost", "stride_2", "--layer", "conv2"
        ).stdout
    )
    table = json.loads(fashion_nb("cost", "stride_1", "stride_2", "--json").stdout)
    assert {name: row["macs"] for name, row in table.items()} == {
        "stride_1": 22_081_080,
        "stride_2": 2_079_480,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken.keras"], "broken.keras cannot be opened as a Keras model"),
        (["sly.keras"], "sly.keras holds a Lambda layer"),
        (["text.txt"], "expected a file that ends in .keras"),
        (["none.keras"], "there is no file none.keras"),
        (["keras.applications.ResNet51"], "Keras ships no model 'ResNet51'"),
        (["keras.applications.MobileNetV3Small"], "input_shape="),
        (["stride_2", "--input-shape", "a,b"], "such as 224,224,3"),
        (["stride_2", "--input-shape", "32,32,1"], "expected one that fits"),
        (["stride_2", "--layer", "conv9"], "no layer 'conv9'"),
        (["stride_2", "--output", "cost.xls"], "ends in .json, .csv"),
        (["stride_2", "--convention", "profiler", "--training"], "the profiler knows none"),
        (["stride_1", "stride_2", "--verify"], "found several models"),
        (["good.keras", "--batch-size", "0"], "1 or more"),
    ],
)
def test_what_cannot_be_counted_is_one_line(arguments, message, saved):
    before = sorted(saved.iterdir())
    answer = fashion_nb("cost", *arguments, cwd=saved)
    assert answer.returncode == 2 and message in answer.stderr, answer.stderr
    assert answer.stderr.startswith("fashion_nb: ") and answer.stderr.count("\n") == 1
    assert sorted(saved.iterdir()) == before


def test_sides_of_models_with_other_layers():
    from fashion_nb.analysis.field import receptive_field
    from fashion_nb.cli.report import _field_rows
    from fashion_nb.models.zoo import build_model

    rows = _field_rows({
        name: receptive_field(build_model(name))
        for name in ("stride_1", "mnist_classifier_32p_64p")
    })
    assert {row["name"]: row["sizes"] for row in rows}["conv3"] == [(7, 7), ()]
