"""Every model of keras.applications: the profiler's rules against keras-flops, and the MACs against
what was published."""

import time
from collections import Counter

import pytest

from fashion_nb.analysis.cost import model_cost
from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.operations import layer_work
from fashion_nb.analysis.profiler_faults import profiler_bugs
from fashion_nb.analysis.profiler_rules import profiler_count
from fashion_nb.analysis.tf_profiler import profiler_counts
from fashion_nb.checks.keras_flops import keras_flops_count

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
if keras.config.backend() != "tensorflow":
    pytest.skip("keras-flops needs Keras on TensorFlow", allow_module_level=True)

QUICK = {"MobileNet", "MobileNetV3Small"}
NAMES = sorted(name for name in dir(keras.applications) if name[0].isupper())
PUBLISHED = {  # billions of MACs, to the digits that were published
    "VGG16": ("15.47", "torchvision"),
    "InceptionV3": ("5.713", "torchvision"),
    "DenseNet121": ("2.834", "torchvision"),
    "EfficientNetB0": ("0.386", "its authors' code, as Keras builds it"),
    "EfficientNetV2B0": ("0.72", "google/automl"),
    "EfficientNetV2B1": ("1.2", "google/automl"),
    "NASNetMobile": ("0.564", "TensorFlow slim"),
    "ResNet50": ("3.858", "Keras's own: its stride sits on another convolution than torchvision's"),
}


HALVES = {
    "ConvNeXtXLarge"
}  # frozen with numbers of 32 bits it takes more than 24 GB; the counts do not depend on the width


def build(name):
    "A model without trained weights, its input size fixed."
    keras.backend.clear_session()
    options = {"input_shape": (224, 224, 3)} if name.startswith("MobileNetV3") else {}
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("float16" if name in HALVES else before)
        return getattr(keras.applications, name)(weights=None, **options)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def resnet_calls():
    return model_graph(build("ResNet50")).calls


def in_billions(macs, like):
    "A count, rounded to as many digits as a published figure has."
    return f"{macs / 1e9:.{len(like.partition('.')[2])}f}"


def test_all_models_of_the_issue_are_there():
    assert len(NAMES) >= 38 and QUICK <= set(NAMES) and set(PUBLISHED) <= set(NAMES)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_model(name):
    if name.startswith("ConvNeXt") and keras.version() < "3.15":
        pytest.skip(
            "an older Keras compiles a grouped convolution in another way than the rules are for"
        )
    model = build(name)
    report = model_cost(model, "profiler", strict=True)
    assert report.total.flops == keras_flops_count(model)
    assert report.total.params == model.count_params()
    counted = model_cost(model, "everything", strict=True)
    assert counted.total.macs == report.total.macs and counted.best_order
    if name in PUBLISHED:
        published, _ = PUBLISHED[name]
        assert in_billions(counted.total.macs, published) == published


@pytest.mark.skipif(
    keras.version() < "3.15", reason="an older Keras compiles a grouped convolution in another way"
)
def test_a_grouped_convolution_blinds_the_profiler():
    "ConvNeXt's depthwise convolutions are grouped ones: they, and what follows, count as nothing."
    calls = model_graph(build("ConvNeXtTiny")).calls
    alone, in_place = [profiler_count(call) for call in calls], profiler_counts(calls)
    lost = Counter(call.kind for call, a, b in zip(calls, alone, in_place) if a != b)
    assert lost == {"LayerNormalization": 18}
    grouped = [call for call in calls if getattr(call.layer, "groups", 1) > 1]
    assert len(grouped) == 18 and {profiler_count(call) for call in grouped} == {0}
    for call in grouped:
        work = layer_work(call)
        assert [(fault.products, fault.biases) for fault in profiler_bugs(call)] == [
            (-2 * work.macs, -work.biases)
        ]


def test_resnet_is_counted_without_bugs(resnet_calls):
    """Profiler = 2 MACs + biases + batch normalization, pooling and additions + 5 for each of 1,000
    outputs of the softmax."""
    calls = resnet_calls
    assert [profiler_bugs(call) for call in calls] == [[] for _ in calls]
    works = [layer_work(call) for call in calls]
    rest = sum(
        profiler_count(call) - 2 * work.macs - work.biases for call, work in zip(calls, works)
    )
    without_macs = sum(profiler_count(call) for call, work in zip(calls, works) if not work.macs)
    assert rest == without_macs + 5 * 1000


def test_the_rules_are_quick():
    "All of ResNet50 by the rules takes less than half of writing the model as JSON, in turns."
    model = build("ResNet50")
    calls = model_graph(model).calls

    def seconds(function):
        start = time.process_time()
        function()
        return time.process_time() - start

    turns = [(seconds(lambda: profiler_counts(calls)), seconds(model.to_json)) for _ in range(5)]
    rules, written = map(min, zip(*turns))
    assert rules <= written / 2
