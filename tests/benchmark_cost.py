"""How fast the counting is: ResNet50 against the keras-flops route in one run, and time over the
number of layers.

Run it with: python tests/benchmark_cost.py
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def best(function, trials):
    "The fewest seconds of processor time of several trials, after one that warms up."
    function()
    times = []
    for _ in range(trials):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def chain(depth):
    "A chain of convolutions."
    from keras import Input, Sequential, layers

    return Sequential(
        [Input((16, 16, 4)), *[layers.Conv2D(4, 3, padding="same") for _ in range(depth)]],
        name=f"chain_{depth}",
    )


def against_keras_flops(name="ResNet50"):
    "Seconds of the whole report, seconds of keras-flops, and how many times faster the report is."
    import keras

    from fashion_nb.analysis.cost import model_cost
    from fashion_nb.checks.keras_flops import keras_flops_count

    model = getattr(keras.applications, name)(weights=None)
    ours = best(lambda: model_cost(model), 9)
    start = time.process_time()
    count = keras_flops_count(model)
    counter = time.process_time() - start
    assert count == model_cost(model, "profiler").total.flops
    return ours, counter, counter / ours


def growth(depths=(50, 100, 200, 400, 800)):
    "Seconds for each depth of a chain."
    from fashion_nb.analysis.cost import model_cost

    return {depth: best(lambda model=chain(depth): model_cost(model), 3) for depth in depths}


if __name__ == "__main__":
    for name in ("ResNet50", "MobileNetV2", "EfficientNetB0"):
        ours, counter, ratio = against_keras_flops(name)
        print(
            f"{name}: report {1000 * ours:.1f} ms, keras-flops {counter:.2f} s, {ratio:.0f} times"
            " faster"
        )
    for depth, seconds in growth().items():
        print(
            f"chain of {depth} convolutions: {1000 * seconds:.1f} ms, {1e6 * seconds / depth:.0f}"
            " µs a layer"
        )
