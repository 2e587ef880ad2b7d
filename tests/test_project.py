"""The project itself: its requirements, what an import costs, the order of the modules, the exports and the site's links."""
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
ORDER = (
    "interrupt", "data", "explore", "blocks", "models", "graph", "traits", "schedule", "arithmetic", "bug_for_bug", "cost", "gradient", "receptive_field", "oracles", "augment", "settings",
    "runs", "fast", "distil", "train", "many", "evaluate", "compare", "predict", "store", "experiments", "frontier", "reduce", "cli",
)  # fmt: skip
HEAVY = {"tensorflow", "keras", "torch", "jax"}


def load(name):
    "A script of .ci as a module."
    spec = spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(suffix="requirements"):
    "The requirements under every key of settings.ini that ends in `suffix`."
    return [Requirement(word) for key, value in settings().items() if key.endswith(suffix) for word in value.split()]


def applies(requirement, python):
    marker = requirement.marker
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "platform_system": "Linux",
                   "os_name": "posix", "platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return marker is None or marker.evaluate(environment)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(python):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for pin in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        if applies(pin, python):
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice for Python {python}"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            pins[canonicalize_name(pin.name)] = specifier.version
    for requirement in requirements() + [Requirement("pip"), Requirement("setuptools")]:
        if applies(requirement, python):
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name} is not in constraints.txt for Python {python}: run 'make lock'"
            assert requirement.specifier.contains(version), f"{requirement.name}=={version} is outside {requirement.specifier}: run 'make lock'"


def test_lock_resolves_every_requirement():
    assert sorted(load("lock").requirements()) == sorted([str(word) for key, value in settings().items() if key.endswith("requirements")
                                                          for word in value.split()] + ["pip", "setuptools"])


def test_every_dependency_has_its_sentence():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = {canonicalize_name(name): sentence for name, sentence in re.findall(r"^- \*\*([\w-]+)\*\* (.+\.)$", text, re.MULTILINE)}
    needed = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert needed - set(said) == set(), "a dependency has no sentence in CONTRIBUTING.md"
    assert set(said) - needed == set(), "CONTRIBUTING.md speaks of what is no dependency"
    assert all(len(sentence.split()) >= 3 for sentence in said.values())


# ---------------------------------------------------------------- what an import costs


def beyond_start(*command):
    "Seconds that a command takes beyond the interpreter's own start: processor time, the best of five, so that other work on the machine counts little."
    best = {}
    for _ in range(5):
        for words in (command, (sys.executable, "-c", "pass")):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([str(word) for word in words], check=True, capture_output=True, cwd=ROOT)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best[words] = min(spent, best.get(words, spent))
    return best[command] - best[sys.executable, "-c", "pass"]


def imported(*command):
    "The top-level packages that a command imports."
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    names = re.findall(r"^import time:.*\|\s*([\w.]+)\s*$", done.stderr, re.MULTILINE)
    assert "site" in names, "the imports were not listed"
    return {name.split(".")[0] for name in names}


def test_the_import_list_sees_what_is_imported():
    assert {"json", "fashion_nb"} <= imported(sys.executable, "-c", "import json, fashion_nb")


def test_the_cost_of_a_start_is_seen():
    assert beyond_start(sys.executable, "-c", "sum(range(6_000_000))") > 0.05


def test_import_is_free():
    command = (sys.executable, "-c", "import fashion_nb")
    assert not imported(*command) & HEAVY
    assert beyond_start(*command) <= 0.05


def test_help_is_quick():
    command = (BIN / "fashion_nb", "--help")
    assert not imported(*command) & HEAVY
    assert beyond_start(*command) <= 0.4


# ---------------------------------------------------------------- the modules


def imports_of(source):
    "The modules of this package that a module imports, anywhere in it."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "fashion_nb" + (f".{node.module}" if node.module else "") if node.level else node.module
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "fashion_nb" else [module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fashion_nb.")}
    return found - {"__version__"}


def forbidden(name):
    "The modules that `name` must not import."
    later = ORDER[ORDER.index(name):]
    return {*later, *(("cost", "receptive_field") if name == "oracles" else ())}


def modules():
    return sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("_"))


def test_imports_are_found_in_every_form():
    source = "import fashion_nb.a.x\nfrom fashion_nb import b\ndef f():\n    from .c import y\n    from . import d\nfrom numpy import e\nfrom fashion_nb.f import g"
    assert imports_of(source) == {"a", "b", "c", "d", "f"}
    assert {"cost", "receptive_field", "train"} <= forbidden("oracles") and "data" not in forbidden("oracles")


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_a_module_imports_only_from_those_before_it(path):
    assert path.stem in ORDER, f"{path.name} has no place in the order of the modules"
    assert not imports_of(path.read_text(encoding="utf-8")) & forbidden(path.stem)


def test_init_imports_nothing():
    assert not [node for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


# ---------------------------------------------------------------- what is made from the notebooks


def exported_cells(path):
    "The module's name and its exported cells, by cell id, of one notebook."
    name, cells = None, {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        flags = {line.lstrip("#| ").split()[0]: line.split()[-1] for line in lines if re.match(r"#\s*\|\s*\w", line)}
        if cell["cell_type"] == "code" and "default_exp" in flags:
            name = flags["default_exp"]
        if cell["cell_type"] == "code" and flags.keys() & {"export", "exporti", "exports"}:
            cells[cell["id"]] = "\n".join(line for line in lines if not re.match(r"#\s*\|\s*\w", line)).strip()
    return name, cells


def module_cells(path):
    "The cells of an exported module, by cell id; nbdev makes imports within the package relative, and here they are absolute again."
    parts = re.split(r"^# %% \.\./nbs/\S+ #(\S+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    absolute = (re.sub(r"^(\s*from) \.(\w*) import", lambda m: f"{m[1]} fashion_nb{'.' * bool(m[2])}{m[2]} import", part, flags=re.MULTILINE) for part in parts[2::2])
    return dict(zip(parts[1::2], (part.strip() for part in absolute)))


def chapters():
    return sorted(path for path in (ROOT / "nbs").glob("*.ipynb") if exported_cells(path)[0])


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_module_is_its_notebook(path):
    name, cells = exported_cells(path)
    assert cells, f"{path.name} exports nothing"
    assert path.stem.split("_", 1)[1] == name
    assert module_cells(PACKAGE / f"{name}.py") == cells, "run 'make export'"


def test_every_module_has_a_notebook():
    assert {path.stem for path in modules()} == {exported_cells(path)[0] for path in chapters()}


def test_the_sidebar_has_every_chapter_in_the_order_of_the_modules():
    contents = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    listed = [name for entry in contents for name in (entry["contents"] if isinstance(entry, dict) else [entry])]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "nbs").glob("*.ipynb"))
    places = [ORDER.index(Path(name).stem.partition("_")[2]) for name in listed if name != "index.ipynb"]
    assert listed[0] == "index.ipynb" and places == sorted(places)


def test_readme_is_up_to_date():
    done = subprocess.run([sys.executable, ".ci/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def notebook(*cells):
    return {"cells": [{"cell_type": "code", "source": source, "outputs": list(outputs)} for source, *outputs in cells]}


STREAM = {"output_type": "stream", "name": "stdout", "text": "1\n"}


@pytest.mark.parametrize("cell, problem", [
    (("x = 1\nx",), "has no output"),
    (("print(1)",), "has no output"),
    (("1 / 0", {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero"}), "ended in an error"),
    (("f()", {"output_type": "stream", "name": "stderr", "text": "a warning"}), "stderr"),
    (("f()", {"output_type": "stream", "name": "stdout", "text": ["saved in /home/", "me/x\n"]}), "path of the machine"),
])
def test_a_fault_in_saved_outputs_is_found(cell, problem):
    check = load("check")
    assert any(problem in found for found in check.output_problems(notebook(("print(1)", STREAM), cell), "a.ipynb"))


def test_good_outputs_pass_and_an_unexecuted_notebook_does_not():
    check = load("check")
    good = notebook(("print(1)", STREAM), ("assert f(1) == 1",), ("#| hide\nx",), ("x;",), ("plot(x)",))
    assert check.output_problems(good, "a.ipynb") == []
    assert any("not executed" in found for found in check.output_problems(notebook(("f(1)",)), "a.ipynb"))


def test_execution_passes_over_what_is_flagged():
    execute = load("execute")
    flags = {"slow", "gpu"}
    assert all(execute.is_skipped(source, flags) for source in ("#| slow\nf()", "# | gpu\nf()", "#| eval: false\nf()", "import nbdev; nbdev.nbdev_export()"))
    assert not any(execute.is_skipped(source, flags) for source in ("f()", "#| echo: false\nf()", "slow = 1  # slow"))
    assert not execute.is_skipped("#| slow\nf()", set())


# ---------------------------------------------------------------- the site


@pytest.fixture
def site(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text('<a href="data.html#split">x</a><a href="#here">x</a><p id="here"><a href="https://example.org/none">x</a><img src="a%20b.png">')
    (tmp_path / "data.html").write_text('<h2 id="split"></h2><a href="deep/">x</a><a href="">x</a><a href="mailto:a@b.c">x</a>')
    (tmp_path / "deep" / "index.html").write_text('<a href="../index.html#top">x</a>')
    (tmp_path / "a b.png").write_bytes(b"")
    return tmp_path


def test_a_whole_site_passes(site):
    assert load("docs").check_links(site) == []


@pytest.mark.parametrize("link, problem", [
    ('<a href="gone.html">x</a>', "not there"),
    ('<img src="gone.png">', "not there"),
    ('<link href="deep/gone.css">', "not there"),
    ('<a href="data.html#gone">x</a>', "anchor that data.html does not have"),
    ('<a href="#gone">x</a>', "anchor that new.html does not have"),
    ('<a href="../outside.html">x</a>', "out of the site"),
    ('<a href="/data.html">x</a>', "root"),
])
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
    (site / "new.html").write_text('<a class="x" href="https://a.org/b/data.html#split">x</a> <a href="https://a.org/bc">x</a> <code>https://a.org/b/x</code>')
    load("docs").make_self_contained(site, "https://a.org/b")
    assert (site / "new.html").read_text() == '<a class="x" href="data.html#split">x</a> <a href="https://a.org/bc">x</a> <code>https://a.org/b/x</code>'


def test_signatures_show_no_links():
    link = "[`f`](https://a.org/x.html#f)"
    assert load("docs").unlink_code(f"{link}\n```python\ndef g(): # like {link}\n```\n{link}\n") == f"{link}\n```python\ndef g(): # like `f`\n```\n{link}\n"


def test_formulas_are_written_out_and_need_no_other_host():
    docs = load("docs")
    page = docs.write_formulas(
        '<link rel="stylesheet" href="https://cdn/katex.min.css"><script src="https://cdn/katex.min.js" defer></script>'
        '<p>With <span class="math inline">\\(k^2 &lt; C_{in}\\)</span> and <b>bold</b></p>'
    )
    assert "katex" not in page and page.count("<math") == 1 and "<msup>" in page and "<b>bold</b>" in page
    with pytest.raises(docs.DocsError, match="is not LaTeX"):
        docs.write_formulas('<span class="math display">\\[x_1_2\\]</span>')
