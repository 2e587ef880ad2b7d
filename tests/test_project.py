"""The project itself: its requirements, what an import costs, the order of the modules, the exports
and the site's links."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fashion_nb"
BIN = Path(sys.executable).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# An import runs only downwards: from a package to those before it, and within a package from a room
# to those with a smaller number, which is the number of its notebook.
PACKAGES = (
    "core", "data", "explore", "models", "analysis", "checks", "training", "evaluation",
    "prediction", "experiments", "reduction", "cli",
)  # fmt: skip
HEAVY = {"tensorflow", "keras", "torch", "jax"}


def load(name):
    "A script of .ci as a module; the scripts import each other as if they were run there."
    if str(ROOT / ".ci") not in sys.path:
        sys.path.insert(0, str(ROOT / ".ci"))
    spec = spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebooks():
    return load("check").notebooks(ROOT)


def exported_as(path):
    "The module that a notebook exports, such as 'analysis.cost'; None for one that exports none."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    found = re.findall(r"^#\s*\|\s*default_exp\s+(\S+)", text, re.MULTILINE)
    return found[0] if found else None


def place(path):
    "The package's place and the number of a notebook in it."
    return PACKAGES.index(path.parent.name), int(path.name.partition("_")[0])


ORDER = tuple(
    exported_as(path) for path in sorted((ROOT / "nbs" / "api").glob("*/*.ipynb"), key=place)
)


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(suffix="requirements"):
    "The requirements under every key of settings.ini that ends in `suffix`."
    return [
        Requirement(word)
        for key, value in settings().items()
        if key.endswith(suffix)
        for word in value.split()
    ]


def applies(requirement, python):
    marker = requirement.marker
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return marker is None or marker.evaluate(environment)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(python):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for pin in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        if applies(pin, python):
            assert canonicalize_name(pin.name) not in pins, (
                f"{pin.name} is pinned twice for Python {python}"
            )
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            pins[canonicalize_name(pin.name)] = specifier.version
    for requirement in requirements() + [Requirement("pip"), Requirement("setuptools")]:
        if applies(requirement, python):
            version = pins.get(canonicalize_name(requirement.name))
            assert version, (
                f"{requirement.name} is not in constraints.txt for Python {python}: run 'make lock'"
            )
            assert requirement.specifier.contains(version), (
                f"{requirement.name}=={version} is outside {requirement.specifier}: run 'make lock'"
            )


def test_lock_resolves_every_requirement():
    assert sorted(load("lock").requirements()) == sorted(
        [
            str(word)
            for key, value in settings().items()
            if key.endswith("requirements")
            for word in value.split()
        ]
        + ["pip", "setuptools"]
    )


def test_every_dependency_has_its_sentence():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = {
        canonicalize_name(name): sentence
        for name, sentence in re.findall(r"^- \*\*([\w-]+)\*\* (.+\.)$", text, re.MULTILINE)
    }
    needed = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert needed - set(said) == set(), "a dependency has no sentence in CONTRIBUTING.md"
    assert set(said) - needed == set(), "CONTRIBUTING.md speaks of what is no dependency"
    assert all(len(sentence.split()) >= 3 for sentence in said.values())


# ---------------------------------------------------------------- what an import costs


def processor_seconds(*command):
    "What a command takes of the processor."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(word) for word in command], check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def times_numpy(*command):
    """How much longer a command takes than importing NumPy does, both beyond the interpreter's
    start.

    All three take turns, and the best of five counts, so that other work on the machine changes
    little.
    `python tests/benchmark_start.py` tells the seconds.
    """
    start, numpy = (sys.executable, "-c", "pass"), (sys.executable, "-c", "import numpy")
    turns = [[processor_seconds(*each) for each in (command, numpy, start)] for _ in range(5)]
    own, other, least = (min(column) for column in zip(*turns))
    return (own - least) / (other - least)


def imported(*command):
    "The top-level packages that a command imports."
    done = subprocess.run(
        [str(word) for word in command],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    names = re.findall(r"^import time:.*\|\s*([\w.]+)\s*$", done.stderr, re.MULTILINE)
    assert "site" in names, "the imports were not listed"
    return {name.split(".")[0] for name in names}


def test_the_import_list_sees_what_is_imported():
    assert {"json", "fashion_nb"} <= imported(sys.executable, "-c", "import json, fashion_nb")


def test_the_cost_of_a_start_is_seen():
    assert times_numpy(sys.executable, "-c", "import numpy, pandas") > 1.5


def test_import_is_free():
    command = (sys.executable, "-c", "import fashion_nb")
    assert not imported(*command) & HEAVY
    assert times_numpy(*command) <= 0.5


def test_help_is_quick():
    command = (BIN / "fashion_nb", "--help")
    assert not imported(*command) & HEAVY
    assert times_numpy(*command) <= 4


# ---------------------------------------------------------------- the modules


def imports_of(source, name="x", known=ORDER):
    "The modules of this package, out of `known`, that the module `name` imports, anywhere in it."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["fashion_nb", *name.split(".")][: -node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    inside = {one.removeprefix("fashion_nb.") for one in found}
    return {one for one in known if any(f"{word}.".startswith(f"{one}.") for word in inside)}


# A check must not see the answer that it checks: of the analysis it knows the graph, what the
# layers are called, and the faults of TensorFlow's profiler.
SEEN = ("graph", "records", "traits", "profiler_faults", "profiler_rules")
SEEN_BY_CHECKS = {f"analysis.{room}" for room in SEEN}


def forbidden(name):
    "The modules that `name` must not import."
    answers = {one for one in ORDER if one.startswith("analysis.")} - SEEN_BY_CHECKS
    return {*ORDER[ORDER.index(name) :], *(answers if name.startswith("checks.") else ())}


def name_of(path):
    "A module's name below the package, such as 'analysis.cost'."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("_"))


def test_imports_are_found_in_every_form():
    source = """
import fashion_nb.a.x
from fashion_nb import b
def f():
    from .c import y
    from . import d
from numpy import e
from fashion_nb.f import g
from ..h import i
"""
    known = ("a.x", "b", "p.c", "p.d", "e", "f", "g", "h", "i", "c", "d")
    assert imports_of(source, "p.q", known) == {"a.x", "b", "p.c", "p.d", "f", "h"}
    assert {"analysis.cost", "analysis.field", "training.loop"} <= forbidden("checks.xla")
    assert not {"data.idx", "analysis.graph"} & forbidden("checks.xla")
    assert "analysis.cost" not in forbidden("training.loop")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_those_before_it(path):
    name = name_of(path)
    assert name in ORDER, f"{path.name} has no place in the order of the modules"
    assert not imports_of(path.read_text(encoding="utf-8"), name) & forbidden(name)


def private_imports(source, name):
    "Names with an underscore in front that a module takes from another package."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = ["fashion_nb", *name.split(".")][: -node.level] if node.level else []
            parts = [*base, *(node.module or "").split(".")]
            if parts[0] == "fashion_nb" and parts[1:2] != [name.split(".")[0]]:
                names = [alias.name for alias in node.names]
                private = [one for one in names if one[0] == "_" and one[:2] != "__"]
                yield from (f"{name} takes {one} from {'.'.join(parts)}" for one in private)


def test_a_private_import_is_found():
    taken = ("..a.b import _c", "fashion_nb.d import _f", ".g import _h", "fashion_nb.x import _j")
    source = "\n".join(f"from {line}" for line in (*taken, "re import _k"))
    assert [text.split()[2] for text in private_imports(source, "x.y")] == ["_c", "_f"]


def test_private_names_stay_inside_their_package():
    found = [
        text
        for path in modules()
        for text in private_imports(path.read_text(encoding="utf-8"), name_of(path))
    ]
    assert found == []


def test_the_numbers_of_a_package_are_consecutive():
    for package in PACKAGES:
        found = [path.name[:2] for path in sorted((ROOT / "nbs/api" / package).glob("*.ipynb"))]
        assert found == [f"{number:02d}" for number in range(1, len(found) + 1)], package


def test_init_imports_nothing_but_the_means_to_import_later():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert all(ast.unparse(node).startswith("from importlib import ") for node in imports)


# ---------------------------------------------------------------- what is made from the notebooks


def test_every_module_has_a_notebook_of_its_name_and_folder():
    "'make check' holds the exported text against the notebook's; here only the names count."
    named = {
        name: path.relative_to(ROOT / "nbs") for path in notebooks() if (name := exported_as(path))
    }
    assert set(named) == {name_of(path) for path in modules()}
    for name, path in named.items():
        folder, _, last = name.rpartition(".")
        assert re.sub(r"^\d+_", "", path.stem) == last
        assert path.parent.as_posix() in (
            {f"api/{folder}".replace(".", "/")} if folder else {".", "api"}
        )


def test_notebooks_in_folders_are_found_and_copies_are_not(tmp_path):
    for name in (
        "00_a.ipynb",
        "api/b/00_c.ipynb",
        ".ipynb_checkpoints/00_a.ipynb",
        "_proc/00_a.ipynb",
        "api/.x/00_c.ipynb",
    ):
        (tmp_path / "nbs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nbs" / name).touch()
    found = load("check").notebooks(tmp_path)
    assert [path.relative_to(tmp_path / "nbs").as_posix() for path in found] == [
        "00_a.ipynb",
        "api/b/00_c.ipynb",
    ]


def listed(contents):
    "The notebooks of a sidebar, sections within sections."
    for entry in contents:
        if isinstance(entry, dict):
            yield from filter(None, [entry.get("href")])
            yield from listed(entry.get("contents", []))
        else:
            yield entry


def test_the_sidebar_has_every_notebook_and_the_modules_in_their_order():
    sidebar = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))
    names = list(listed(sidebar["website"]["sidebar"]["contents"]))
    assert sorted(names) == sorted(
        path.relative_to(ROOT / "nbs").as_posix()
        for path in notebooks()
        if "solutions" not in path.parts
    )
    exported = [exported_as(ROOT / "nbs" / name) for name in names]
    places = [ORDER.index(name) for name in exported if name]
    assert names[0] == "index.ipynb" and places == sorted(places)


def notebook(*cells):
    return {
        "cells": [
            {"cell_type": "code", "source": source, "outputs": list(outputs)}
            for source, *outputs in cells
        ]
    }


STREAM = {"output_type": "stream", "name": "stdout", "text": "1\n"}


@pytest.mark.parametrize(
    "cell, problem",
    [
        (("x = 1\nx",), "has no output"),
        (("print(1)",), "has no output"),
        (
            (
                "1 / 0",
                {
                    "output_type": "error",
                    "ename": "ZeroDivisionError",
                    "evalue": "division by zero",
                },
            ),
            "ended in an error",
        ),
        (("f()", {"output_type": "stream", "name": "stderr", "text": "a warning"}), "stderr"),
        (
            (
                "f()",
                {"output_type": "stream", "name": "stdout", "text": ["saved in /home/", "me/x\n"]},
            ),
            "path of the machine",
        ),
        (
            (
                "f()",
                {
                    "output_type": "stream",
                    "name": "stdout",
                    "text": "WARNING: /opt/env/lib/python3.11/site-packages/keras/a.py:1: old\n",
                },
            ),
            "path of the machine",
        ),
    ],
)
def test_a_fault_in_saved_outputs_is_found(cell, problem):
    check = load("check")
    assert any(
        problem in found
        for found in check.output_problems(notebook(("print(1)", STREAM), cell), "a.ipynb")
    )


def test_good_outputs_pass_and_an_unexecuted_notebook_does_not():
    check = load("check")
    good = notebook(
        ("print(1)", STREAM), ("assert f(1) == 1",), ("#| hide\nx",), ("x;",), ("plot(x)",)
    )
    assert check.output_problems(good, "a.ipynb") == []
    assert any(
        "not executed" in found for found in check.output_problems(notebook(("f(1)",)), "a.ipynb")
    )


def in_copy(tmp_path, *files):
    "A checkout, as far as `ruff` and `actionlint` need one, with these files: name, text."
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "import os\nx = 1",
        "#| hide\ndef test():\n    import os\n    assert os.name",
        "from os import name\nname",
        "#| export\nimport os\nX = 1",
    ],
)
def test_an_import_beside_other_code_is_found(source):
    (found,) = load("check").import_problems(notebook((source,)), "a.ipynb")
    assert found.startswith("a.ipynb, cell 0 imports and does something else")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nfrom os import name",
        "#| export\ndef f():\n    import keras",
        "#| eval: false\nimport os\nx = 1",
        "#| hide\nimport nbdev; nbdev.nbdev_export()",
        "x = 'import os'",
    ],
)
def test_an_import_alone_is_fine(source):
    assert load("check").import_problems(notebook((source,)), "a.ipynb") == []


@pytest.mark.parametrize(
    "source, problem",
    [
        ("_f(1)", "names _f"),
        ("x = module._f", "names _f"),
        ("from fashion_nb.analysis.cost import _f", "names _f"),
        ("def _helper():\n    return 1", "names _helper"),
        (
            "with TemporaryDirectory() as folder:\n    save(folder)",
            "makes a scratch file (TemporaryDirectory)",
        ),
        ("assert f(1) == 2", "holds nothing but checks"),
        ("test_eq(f(1), 2)\ntest_fail(f)\nassert f(2)", "holds nothing but checks"),
        ("\n".join(f"x{k} = {k}" for k in range(13)), "has 13 lines, expected at most 12"),
        ("x = '" + "a" * 84 + "'", "has a line of 90 characters, expected at most 88"),
        ("# " + "a" * 87, "has a line of 89 characters"),
        ("#| eval: false\n_f(1)", "names _f"),
    ],
)
def test_what_a_reference_page_must_not_show_is_found(source, problem):
    (found,) = load("check").page_problems(notebook(("x",), (source,)), "api/a/00_b.ipynb")
    assert found.startswith(f"api/a/00_b.ipynb, cell 1 is shown and {problem}")


@pytest.mark.parametrize(
    "source",
    [
        "#| hide\n_f(1)\nassert _f(2)",
        "#| export\ndef _f():\n    return 1",
        "# | echo: false\n_f(1)",
        "report._repr_html_()",
        "row._replace(x=1)",
        "for _ in range(3):\n    f(_)",
        "found = f(1)\nassert found == 2\nfound",
        "\n\n".join(f"# {k}\nx{k} = {k}" for k in range(12)),
        "#| fig-cap: " + "a" * 100 + "\nplot(x)",
        "x = '" + "a" * 82 + "'",
    ],
)
def test_what_a_reference_page_may_show_passes(source):
    assert load("check").page_problems(notebook((source,)), "a.ipynb") == []


@pytest.mark.parametrize(
    "text, rule",
    [
        ("import os\n", "F401"),
        ("import sys\nimport os\nprint(os, sys)\n", "I001"),
        ("x = 1; y = 2\n", "E702"),
        ("from typing import List\n\nx: List[int] = []\n", "UP0"),
        ("x = '" + "a" * 100 + "'\n", "E501"),
    ],
)
def test_ruff_finds_a_planted_fault(tmp_path, text, rule):
    settings = ("ruff.toml", (ROOT / "ruff.toml").read_text(encoding="utf-8"))
    book = json.dumps({**notebook((text,)), "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    book = book.replace(
        '"outputs"', '"id": "a", "metadata": {}, "execution_count": null, "outputs"'
    )
    good = ("tests/good.py", "x = 1\n")
    for bad in (("tests/bad.py", text), ("nbs/api/a/00_bad.ipynb", book)):
        root = in_copy(tmp_path / bad[0].replace("/", "-"), settings, good, bad)
        found = load("check").style_problems(root)
        assert any(rule in line for line in found) and all(bad[0] in line for line in found), found
    assert load("check").style_problems(in_copy(tmp_path / "all-good", settings, good)) == []


def test_actionlint_finds_a_planted_fault(tmp_path):
    check = load("check")
    if not check.find_actionlint():
        pytest.skip("actionlint is not installed: pip install -e '.[actions]'")
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    name = ".github/workflows/test.yml"
    assert check.workflow_problems(in_copy(tmp_path / "good", (name, text))) == []
    wrong = text.replace("${{ matrix.python }}", "${{ matrix.pyton }}")
    assert wrong != text
    (found,) = check.workflow_problems(in_copy(tmp_path / "bad", (name, wrong)))
    assert "pyton" in found


def test_workflows_call_what_is_there():
    "What actionlint cannot know: the targets of make, the scripts, and the files they speak of."
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    called = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            called += [step["run"] for step in job.get("steps", []) if "run" in step]
    made = {words[-1] for line in called if (words := line.split())[0] == "make"}
    assert made and made <= targets
    scripts = {words[0] for line in called if (words := line.split())[0].startswith(".ci/")}
    assert scripts == {".ci/run"} and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_execution_passes_over_what_is_flagged():
    execute = load("execute")
    flags = {"slow", "gpu"}
    assert all(
        execute.is_skipped(source, flags)
        for source in (
            "#| slow\nf()",
            "# | gpu\nf()",
            "#| eval: false\nf()",
            "import nbdev; nbdev.nbdev_export()",
        )
    )
    assert not any(
        execute.is_skipped(source, flags)
        for source in ("f()", "#| echo: false\nf()", "slow = 1  # slow")
    )
    assert not execute.is_skipped("#| slow\nf()", set())


# ---------------------------------------------------------------- running all tests


@pytest.fixture
def trial(tmp_path, monkeypatch):
    "The runner in a project of its own, with what it preloads left out."
    runner = load("test")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "DURATIONS", tmp_path / "durations.json")
    monkeypatch.setattr(runner, "preload", lambda: None)
    monkeypatch.chdir(tmp_path)
    in_copy(
        tmp_path,
        (
            "settings.ini",
            "[DEFAULT]\nlib_name = trial\nnbs_path = nbs\nlib_path = trial\ntst_flags = slow gpu "
            "torch\n",
        ),
        (
            "tests/conftest.py",
            "def pytest_addoption(parser):\n    parser.addoption('--slow', action='store_true')\n",
        ),
    )
    (tmp_path / "nbs").mkdir()
    return runner


def book(*sources):
    "The text of a notebook with these cells of code."
    cells = [
        {
            "cell_type": "code",
            "id": f"c{k}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for k, source in enumerate(sources)
    ]
    return json.dumps(
        {
            "cells": cells,
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def test_the_runner_counts_shows_and_fails(trial, tmp_path, capfd):
    in_copy(
        tmp_path,
        (
            "tests/test_good.py",
            "import pytest\n\ndef test_a():\n    pass\n\ndef test_b():\n    pytest.skip('b')\n",
        ),
        (
            "tests/test_bad.py",
            "def test_a():\n    print('said before')\n    assert 1 == 2\n\ndef test_b():\n    "
            "pass\n",
        ),
        ("tests/test_dies.py", "import os\n\ndef test_a():\n    os.kill(os.getpid(), 9)\n"),
        ("tests/test_broken.py", "import nothing_of_this_name\n"),
        ("nbs/00_good.ipynb", book("x = 1", "assert x == 1", "#| slow\nassert False")),
        ("nbs/api/a/00_bad.ipynb", book("y = 40 + 2", "assert y == 41, f'y is {y}'")),
    )
    assert trial.main([]) == 1
    said = capfd.readouterr().out
    assert said.splitlines()[-1] == "3 passed, 4 failed, 1 skipped"
    assert all(
        words in said for words in ("said before", "y is 42", "by signal 9", "nothing_of_this_name")
    ), said
    assert "failed: " in said and "test_good.py" not in said.split("failed: ")[-1]
    assert trial.main(["good"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"
    assert trial.main(["00_good", "--slow"]) == 1  # the cell flagged slow is run, and fails
    assert trial.main(["nothing"]) == 2


def test_the_runner_ends_what_takes_too_long_and_what_is_left_running(trial, tmp_path, capfd):
    left = (
        "import subprocess\n\ndef test_a():\n"
        "    print('PID', subprocess.Popen(['sleep', '600']).pid)\n    assert False\n"
    )
    in_copy(
        tmp_path,
        ("tests/test_left.py", left),
        ("tests/test_long.py", "import time\n\ndef test_a():\n    time.sleep(600)\n"),
    )
    jobs = trial.choose(trial.all_names(), {}, [])
    trial.run_all(jobs, limit=5)
    said = capfd.readouterr().out
    assert [job.counts["failed"] for job in jobs] == [1, 1] and "did not end within 5 s" in said
    left_running = re.search(r"PID (\d+)", said)[1]
    state = Path(f"/proc/{left_running}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_the_longest_start_first_and_times_are_remembered(trial, tmp_path, capfd):
    in_copy(
        tmp_path,
        ("tests/test_a.py", "def test_a():\n    pass\n"),
        ("tests/test_b.py", "def test_b():\n    pass\n"),
    )
    (tmp_path / "durations.json").write_text(
        '{"tests/test_a.py": 3, "tests/test_b.py": 9, "tests/test_gone.py": 5}'
    )
    names = trial.all_names()
    assert [job.name for job in trial.choose(names, trial.durations(), [])] == [
        "tests/test_b.py",
        "tests/test_a.py",
    ]
    assert [job.name for job in trial.choose(names, trial.durations(), [], most=5)] == [
        "tests/test_a.py"
    ]
    assert trial.main(["test_a", "--remember"]) == 0
    kept = json.loads((tmp_path / "durations.json").read_text())
    assert set(kept) == set(names) and kept["tests/test_b.py"] == 9


def test_what_needs_all_memory_runs_alone(trial):
    large, other = trial.Job("tests/test_applications.py", 9), trial.Job("tests/test_cost.py", 9)
    assert (
        trial.fits(large, {}, True)
        and not trial.fits(large, {1: other}, True)
        and not trial.fits(other, {1: large}, True)
    )
    assert trial.fits(large, {1: other}, False)


# ---------------------------------------------------------------- the site


QUARTO = """#!/bin/sh
# Stands in for Quarto: notes its arguments, and writes what Quarto would.
echo "$@" >> "$QUARTO_NOTES"
mkdir -p _docs
echo page > _docs/index.html
case "$*" in *README.md*) echo "not ours" > _docs/README.md;; esac
"""


@pytest.mark.slow
def test_nbdevs_own_commands_come_as_far_as_quarto_and_leave_the_readme(tmp_path):
    """nbdev_docs and nbdev_preview process every notebook without an error, even when README.md is
    older than the index."""
    folder, programs = tmp_path / "copy", tmp_path / "bin"
    folder.mkdir()
    load("check").copy_tree(ROOT, folder)
    (quarto,) = [in_copy(programs, ("quarto", QUARTO)) / "quarto"]
    quarto.chmod(0o755)
    os.utime(folder / "README.md", (0, 0))
    before, notes = (folder / "README.md").read_bytes(), tmp_path / "notes"
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"} | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "QUARTO_NOTES": str(notes),
    }
    for command in (
        ["nbdev_docs", "--n_workers", "1"],
        ["nbdev_preview", "--n_workers", "1", "--no_browser"],
    ):
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Error" not in done.stderr, done.stderr[-3000:]
    assert notes.read_text().splitlines() == ["render --no-cache", "preview --no-browser"]
    assert (folder / "_docs" / "index.html").read_text() == "page\n"
    assert (folder / "README.md").read_bytes() == before
    processed = {
        path.relative_to(folder / "_proc").as_posix()
        for path in (folder / "_proc").rglob("*.ipynb")
    }
    assert {path.relative_to(ROOT / "nbs").as_posix() for path in notebooks()} <= processed


@pytest.fixture
def site(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="data.html#split">x</a><a href="#here">x</a><p id="here"><a '
        'href="https://example.org/none">x</a><img src="a%20b.png">'
    )
    (tmp_path / "data.html").write_text(
        '<h2 id="split"></h2><a href="deep/">x</a><a href="">x</a><a href="mailto:a@b.c">x</a>'
    )
    (tmp_path / "deep" / "index.html").write_text('<a href="../index.html#top">x</a>')
    (tmp_path / "a b.png").write_bytes(b"")
    return tmp_path


def test_a_whole_site_passes(site):
    assert load("docs").check_links(site) == []


@pytest.mark.parametrize(
    "link, problem",
    [
        ('<a href="gone.html">x</a>', "not there"),
        ('<img src="gone.png">', "not there"),
        ('<link href="deep/gone.css">', "not there"),
        ('<a href="data.html#gone">x</a>', "anchor that data.html does not have"),
        ('<a href="#gone">x</a>', "anchor that new.html does not have"),
        ('<a href="../outside.html">x</a>', "out of the site"),
        ('<a href="/data.html">x</a>', "root"),
    ],
)
def test_a_planted_broken_link_is_found(site, link, problem):
    (site / "new.html").write_text(link)
    (found,) = load("docs").check_links(site)
    assert found.startswith("new.html: ") and problem in found


def test_a_broken_search_entry_is_found(site):
    (site / "search.json").write_text('[{"href": "data.html#split"}, {"href": "data.html#gone"}]')
    (found,) = load("docs").check_links(site)
    assert found.startswith("search.json: ")


def test_an_empty_site_is_an_error(tmp_path):
    docs = load("docs")
    with pytest.raises(docs.DocsError, match="holds no pages"):
        docs.check_links(tmp_path)


def test_links_to_the_published_site_become_relative(site):
    (site / "new.html").write_text(
        '<a class="x" href="https://a.org/b/data.html#split">x</a> <a '
        'href="https://a.org/bc">x</a> <code>https://a.org/b/x</code>'
    )
    load("docs").make_self_contained(site, "https://a.org/b")
    assert (
        site / "new.html"
    ).read_text() == '<a class="x" href="data.html#split">x</a> <a href="https://a.org/bc">x</a> <code>https://a.org/b/x</code>'


@pytest.mark.parametrize(
    "tag, named",
    [
        ('<script src="https://cdn/x.js"></script>', "<script> of https://cdn/x.js"),
        ('<link rel="stylesheet" href="//cdn/x.css">', "<link> of //cdn/x.css"),
        ('<img src="http://a.org/x.png">', "<img> of http://a.org/x.png"),
    ],
)
def test_what_comes_from_another_host_is_found(site, tag, named):
    docs = load("docs")
    assert docs.check_hosts(site) == []
    (site / "deep" / "new.html").write_text(f'<link rel="canonical" href="https://a.org/b">{tag}')
    assert docs.check_hosts(site) == [
        f"deep/new.html asks another host for a {named}; make it part of the site"
    ]


def test_what_widgets_would_need_is_taken_out(site):
    """Quarto adds these where an output is HTML; they come from another host, and nothing here uses
    them."""
    wanted = '<script src="own.js"></script>'
    (site / "new.html").write_text(
        '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" '
        'integrity="x" crossorigin="anonymous"></script>'
        '<script src="https://cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1/jquery.min.js" '
        'data-relocate-top="true"></script>'
        """<script type="application/javascript">define('jquery', [],function() {"""
        f"return window.jQuery;}})</script>{wanted}"
    )
    docs = load("docs")
    docs.make_self_contained(site, "https://a.org/b")
    assert docs.check_hosts(site) == [] and (site / "new.html").read_text() == wanted


def test_pages_can_be_used_without_eyes_and_without_a_mouse():
    docs = load("docs")
    page = docs.make_accessible(
        '<body><nav class="a"></nav><nav aria-label="b"></nav><a title="Source"><i class="bi '
        'bi-github" role="img"></i></a>'
        '<a class="sidebar-item-toggle" role="navigation">x</a><table><tr><th></th><th class="c"> '
        '&nbsp;</th><th>d</th></tr></table></body>'
    )
    assert page.startswith(
        '<body><nav aria-label="Site" class="a"></nav><nav aria-label="b"></nav>'
    )
    assert '<i class="bi bi-github" aria-hidden="true">' in page and 'role="img"' not in page
    assert (
        'role="button">x</a>' in page and '<tr><td></td><td class="c"></td><th>d</th></tr>' in page
    )
    assert page.count("tabIndex=0") == 1 and page.endswith("</script></body>")
    assert (
        docs.make_accessible(page) == page
        and docs.make_accessible("<p>a part</p>") == "<p>a part</p>"
    )


def test_signatures_show_no_links():
    link = "[`f`](https://a.org/x.html#f)"
    assert (
        load("docs").unlink_code(f"{link}\n```python\ndef g(): # like {link}\n```\n{link}\n")
        == f"{link}\n```python\ndef g(): # like `f`\n```\n{link}\n"
    )


def test_formulas_are_written_out_and_need_no_other_host():
    docs = load("docs")
    page = docs.write_formulas(
        '<link rel="stylesheet" href="https://cdn/katex.min.css"><script '
        'src="https://cdn/katex.min.js" defer></script>'
        '<p>With <span class="math inline">\\(k^2 &lt; C_{in}\\)</span> and <b>bold</b></p>'
    )
    assert (
        "katex" not in page
        and page.count("<math") == 1
        and "<msup>" in page
        and "<b>bold</b>" in page
    )
    with pytest.raises(docs.DocsError, match="is not LaTeX"):
        docs.write_formulas('<span class="math display">\\[x_1_2\\]</span>')
