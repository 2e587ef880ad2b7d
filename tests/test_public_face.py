"""The public face of the package: what `import fashion_nb as fnb` offers, and that it costs nothing
until it is used."""
import inspect
import pydoc
import rlcompleter
import subprocess
import sys

import pytest

import fashion_nb as fnb

NAMES = """
    CLASS_NAMES CostError DataError FashionMNIST FieldError TrainConfig TrainError audit
    build_model compare compare_costs effective_field evaluate leaderboard list_models
    load_fashion_mnist load_pretrained model_cost model_info open_model predict receptive_field
    register_augmentation register_block register_field register_handler register_model
    results_table resume run_experiment train train_many verify_cost verify_field
""".split()


def test_the_list_is_what_is_offered():
    assert sorted(fnb.__all__) == sorted(NAMES)
    assert sorted(dir(fnb)) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_its_docstring_and_help(name):
    value = getattr(fnb, name)
    assert value is getattr(fnb, name)
    if name == "CLASS_NAMES":
        return
    assert value.__module__.startswith("fashion_nb.")
    assert inspect.getdoc(value)
    assert name in pydoc.render_doc(value)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        fnb.no_such_name
    with pytest.raises(ImportError, match="no_such_name"):
        from fashion_nb import no_such_name  # noqa: F401


def test_tab_completion_finds_the_names():
    completer = rlcompleter.Completer({"fnb": fnb})
    found = [completer.complete("fnb.model_", state) for state in range(3)]
    assert [match.rstrip("(") for match in found if match] == ["fnb.model_cost", "fnb.model_info"]


def test_importing_loads_no_library_that_is_slow_to_load():
    code = """
import sys
import fashion_nb as fnb
dir(fnb)
slow = {"tensorflow", "keras", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "click"}
slow &= set(sys.modules)
assert not slow, slow
from fashion_nb import CLASS_NAMES, TrainConfig, train
assert TrainConfig().model and callable(train) and len(CLASS_NAMES) == 10
slow = {"tensorflow", "keras"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_and_a_public_name_do_not_share_a_name():
    import pkgutil

    assert not {module.name for module in pkgutil.iter_modules(fnb.__path__)} & set(NAMES)


def test_a_layer_that_nobody_knows_is_answered_with_a_name_to_import():
    import keras

    class Unheard(keras.layers.Layer):
        def call(self, x):
            return keras.ops.map(lambda row: row, x)

    model = keras.Sequential([keras.Input((8, 8, 1)), Unheard(name="unheard")])
    assert "from fashion_nb import register_handler" in str(fnb.model_cost(model))
    with pytest.raises(fnb.FieldError, match="from fashion_nb import register_field"):
        fnb.receptive_field(model)
