"""Models from files and what they may take: classes of a user, code in a file, inputs, budgets."""
import json

import keras
import pytest
from commands import fashion_nb
from keras import layers

SOURCE = """
import keras

class MyLayer(keras.layers.Layer):
    def __init__(self, units=4, **options):
        super().__init__(**options)
        self.units, self.dense = units, keras.layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return super().get_config() | {"units": self.units}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A model of each kind, saved in both formats."
    from fashion_nb.models.files import load_classes

    folder = tmp_path_factory.mktemp("files")
    (folder / "my_layers.py").write_text(SOURCE)
    own = load_classes([f"{folder / 'my_layers.py'}:MyLayer"])["MyLayer"]
    vector = keras.Input((6,))
    models = {
        "plain": layers.Dense(3)(vector),
        "custom": own(3)(vector),
        "lambda": layers.Dense(2)(layers.Lambda(lambda x: x * 2)(vector)),
        "registered": layers.Dense(3, activation="relu", kernel_regularizer="l2")(vector),
    }
    for name, output in models.items():
        for end in ("keras", "h5"):
            keras.Model(vector, output).save(folder / f"{name}.{end}")
    image, tokens = keras.Input((32, 32, 3), name="image"), keras.Input((None,), name="tokens")
    pooled = [
        layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)),
        layers.GlobalAveragePooling1D()(layers.Embedding(10, 5)(tokens)),
    ]
    keras.Model([image, tokens], layers.Concatenate()(pooled)).save(folder / "two.keras")
    return folder


def macs(folder, *arguments):
    "The total of `cost --json`."
    answer = fashion_nb("cost", *arguments, "--json", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)["total"]["macs"]


@pytest.mark.parametrize("end", ["keras", "h5"])
def test_files_of_both_formats(folder, end):
    assert macs(folder, f"plain.{end}") == macs(folder, f"registered.{end}") == 18
    assert macs(folder, f"custom.{end}", "--custom", "my_layers.py:MyLayer") == 18
    assert macs(folder, f"lambda.{end}", "--trust") == 12
    answer = fashion_nb("field", f"plain.{end}", cwd=folder)
    assert answer.returncode == 0 and "dense" in answer.stdout


@pytest.mark.parametrize("end", ["keras", "h5"])
def test_what_a_file_lacks_is_named_with_the_way_to_give_it(folder, end):
    for command in ("cost", "field"):
        answer = fashion_nb(command, f"custom.{end}", cwd=folder)
        assert answer.returncode == 2 and answer.stderr.count("\n") == 1
        assert "does not know: MyLayer" in answer.stderr
        assert "--custom FILE.py:MyLayer" in answer.stderr
        answer = fashion_nb(command, f"lambda.{end}", cwd=folder)
        assert answer.returncode == 2 and "--trust" in answer.stderr


def test_a_file_of_a_users_own_is_run_when_it_is_asked_for_and_not_before(folder):
    (folder / "loud.py").write_text("open('was_run', 'w').close()\n" + SOURCE)
    assert fashion_nb("cost", "custom.keras", cwd=folder).returncode == 2
    assert not (folder / "was_run").exists()
    assert macs(folder, "custom.keras", "--custom", "loud.py:MyLayer") == 18
    assert (folder / "was_run").exists()


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ("my_layers.py", "such as my_layers.py:MyLayer"),
        ("none.py:MyLayer", "such as my_layers.py:MyLayer"),
        ("my_layers.py:Other", "no class 'Other' in my_layers.py"),
        ("broken.py:MyLayer", "broken.py does not run: ZeroDivisionError"),
    ],
)
def test_custom_classes_that_are_not_there(folder, custom, message):
    (folder / "broken.py").write_text("1 / 0\n")
    answer = fashion_nb("cost", "custom.keras", "--custom", custom, cwd=folder)
    assert answer.returncode == 2 and message in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_shapes_of_several_inputs(folder):
    answer = fashion_nb("cost", "two.keras", cwd=folder)
    assert answer.returncode == 2 and "'tokens'" in answer.stderr
    assert "--input-shape" in answer.stderr
    both = ("--input-shape", "image=32,32,3", "--input-shape", "tokens=77")
    assert macs(folder, "two.keras", *both) == 30 * 30 * 4 * 27
    assert macs(folder, "two.keras", *both[2:]) == 30 * 30 * 4 * 27
    for wrong, message in (
        (("--input-shape", "77", "--input-shape", "3"), "one for each input"),
        (("--input-shape", "tokens=7", "--input-shape", "tokens=8"), "one for each input"),
        (("--input-shape", "words=7"), "expected names among image, tokens"),
        (("--input-shape", "image=9,9,3", "--input-shape", "tokens=7"), "fits (32, 32, 3)"),
        (("--input-shape", "tokens=many"), "such as image=224,224,3"),
    ):
        answer = fashion_nb("cost", "two.keras", *wrong, cwd=folder)
        assert answer.returncode == 2 and message in answer.stderr


def test_the_source_of_a_field(folder):
    def sizes(*source):
        words = ("two.keras", "--input-shape", "tokens=77", "--json", *source)
        answer = fashion_nb("field", *words, cwd=folder)
        assert answer.returncode == 0, answer.stderr
        return {row["name"]: row["size"] for row in json.loads(answer.stdout)["layers"]}

    assert sizes() == sizes("--source", "image") == sizes("--source", "0")
    assert sizes("--source", "tokens") == sizes("--source", "1") != sizes()
    words = ("field", "two.keras", "--input-shape", "tokens=7", "--source", "words")
    answer = fashion_nb(*words, cwd=folder)
    assert answer.returncode == 2 and "(image, tokens)" in answer.stderr


@pytest.mark.parametrize(
    ("limits", "status", "line"),
    [
        (["--max-macs", "5M"], 0, "ok: 2,079,480 MACs, 41.6% of 5,000,000"),
        (["--max-macs", "2M"], 1, "over: 2,079,480 MACs, 104.0% of 2,000,000"),
        (["--max-macs", "2079480"], 0, "ok: 2,079,480 MACs, 100.0% of 2,079,480"),
        (["--max-params", "100K"], 1, "over: 237,430 parameters"),
        (["--max-memory", "76KiB"], 0, "ok: 77,120 bytes of activations"),
        (["--max-memory", "77KB"], 1, "over: 77,120 bytes of activations"),
        (["--max-flops", "5M"], 0, "ok: 4,180,350 FLOPs"),
        (["--layer-share", "0.4"], 1, "over: conv2 has 49.9% of the MACs, at most 40.0% allowed"),
    ],
)
def test_a_budget(limits, status, line):
    answer = fashion_nb("check", "stride_2", *limits)
    assert (answer.returncode, answer.stderr) == (status, "")
    assert answer.stdout.splitlines()[0].startswith(line)


def test_a_budget_is_not_kept_by_what_is_not_known(folder):
    answer = fashion_nb("check", "lambda.keras", "--trust", "--max-macs", "1M", cwd=folder)
    assert answer.returncode == 1 and "over: what lambda computes is not known" in answer.stdout
    answer = fashion_nb("check", "lambda.keras", "--trust", "--max-params", "1M", cwd=folder)
    assert answer.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "found no limit: expected one such as --max-macs 5M"),
        (["--max-macs", "many"], "found 'many': expected a size such as 5M"),
        (["--max-macs", "-3"], "expected a size such as 5M"),
        (["--layer-share", "60"], "expected a share above 0, 1 at most"),
        (["--max-macs", "5M", "--convention", "gmacs"], "expected one of"),
    ],
)
def test_limits_that_make_no_sense(arguments, message):
    answer = fashion_nb("check", "stride_2", *arguments)
    assert answer.returncode == 2 and message in answer.stderr and not answer.stdout


def test_a_page_of_a_model(folder):
    answer = fashion_nb("cost", "two.keras", "--input-shape", "tokens=7", "--output", "two.html",
                        cwd=folder)  # fmt: skip
    assert answer.returncode == 0 and answer.stdout == "written to two.html\n"
    page = (folder / "two.html").read_text(encoding="utf-8")
    assert "97,200" in page and page.count("<g class") == 5
    for part in ("Roofline", "Memory over the execution", "Receptive field", "one_per_mac"):
        assert part in page
    assert not any(word in page for word in ("http://", "https://", "<link", "lower bounds"))
    fashion_nb("cost", "lambda.keras", "--trust", "--output", "lambda.html", cwd=folder)
    page = (folder / "lambda.html").read_text(encoding="utf-8")
    assert page.index("lower bounds") < page.index("Layers</h2>")
    assert "No field can be derived" in page
