"Peak memory: the best order against all orders, options, faults, speed, a model's own numbers."
import random
from time import process_time

import keras
import numpy as np
import pytest

from fashion_nb.analysis.graph import model_graph
from fashion_nb.analysis.memory import (
    ScheduleError,
    lives,
    memory_steps,
    model_tensors,
    peak_of,
    total_kept,
)
from fashion_nb.analysis.schedule import best_order, schedule_model
from fashion_nb.models.zoo import build_model


def random_case(rng, calls, reach=9):
    "A random graph with every option in use."
    inputs = rng.randint(1, 3)
    sizes, uses = [], []
    for call in range(calls):
        sizes.append(
            rng.randint(0, 9)
            if rng.random() < 0.7
            else tuple(rng.randint(0, 9) for _ in range(rng.randint(1, 3)))
        )
        used = [rng.randint(max(-inputs, call - reach), call - 1) for _ in range(rng.randint(1, 3))]
        uses.append([
            one if one < 0 or isinstance(sizes[one], int) else (one, rng.randrange(len(sizes[one])))
            for one in used
        ])

    def some(share):
        return [call for call in range(calls) if rng.random() < share]

    last = [
        call if isinstance(sizes[call], int) else (call, 0)
        for call in {calls - 1, rng.randrange(calls)}
    ]
    counted = [rng.randint(0, 9) for _ in range(inputs)] if rng.random() < 0.5 else []
    return {"sizes": sizes, "uses": uses, "outputs": last, "inputs": counted, "alias": some(0.2),
        "in_place": some(0.4)}


def slow_peaks(sizes, uses, outputs=(), inputs=(), alias=(), in_place=()):
    """The lowest peak over all orders, from the definition: who is alive is asked anew at each
    step. Shares no code with the package."""

    def full(one):
        return (one, 0) if isinstance(one, int) else one

    made = [[size] if isinstance(size, int) else list(size) for size in sizes]
    uses, outputs = [[full(one) for one in used] for used in uses], [full(one) for one in outputs]
    size = {
        (call, number): value
        for call, values in enumerate(made)
        for number, value in enumerate(values)
    }
    size |= {(-1 - number, 0): value for number, value in enumerate(inputs)}
    home = {}
    # the tensor whose memory a tensor lives in
    for call, used in enumerate(uses):
        for number in range(len(made[call])):
            home[call, number] = (
                home.get(used[0], used[0]) if call in alias and number == 0 else (call, number)
            )
    home |= {(-1 - number, 0): (-1 - number, 0) for number in range(9)}
    kept = {home[one] for one in outputs}
    pieces = {one for one in home.values() if one in size}
    readers = {
        piece: {call for call, used in enumerate(uses) if piece in {home[one] for one in used}}
        for piece in pieces
    }
    best = None

    def go(done, peak):
        nonlocal best
        if best is not None and peak >= best:
            return
        if len(done) == len(uses):
            best = peak
            return
        for call, used in enumerate(uses):
            if call in done or any(one[0] >= 0 and one[0] not in done for one in used):
                continue
            now = 0
            for piece in pieces:
                born = piece[0] < 0 or piece[0] in done or piece[0] == call
                needed = piece in kept or piece[0] == call or readers[piece] - done
                now += size[piece] if born and needed else 0
            if call in in_place and home[call, 0] == (call, 0):
                for piece in {home[one] for one in used} & pieces:
                    if (
                        piece not in kept
                        and piece[0] >= 0
                        and size[piece] == size[call, 0]
                        and readers[piece] <= done | {call}
                    ):
                        now -= size[call, 0]
                        break
            go(done | {call}, max(peak, now))

    go(frozenset(), 0)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_no_order_of_a_small_graph_is_better(seed):
    rng = random.Random(seed)
    for _ in range(15):
        case = random_case(rng, rng.randint(1, 7))
        found = best_order(**case)
        assert found.exact and found.lower_bound == found.peak == peak_of(
            found.order, **case
        ) == slow_peaks(**case), case


def test_a_way_down_is_not_followed_with_calls_that_it_does_not_need():
    """Call 2 keeps a tensor. Run before the others it costs one more at the peak, though the memory
    falls below its start all the same."""
    case = {
        "sizes": [8, (0, 4), (1, 9), 0, 8, (9, 5, 4)],
        "uses": [[-3, -1, -1], [-1, -1, 0], [-3], [-2, (1, 1)], [0, -1, -1], [-2]],
        "outputs": [(2, 0), (5, 0)],
        "inputs": [1, 8, 0],
        "in_place": [0, 1, 3, 5],
    }
    found = best_order(**case)
    assert (
        found.exact
        and found.peak == 26 == slow_peaks(**case)
        and found.order.index(5) < found.order.index(2)
    )


@pytest.mark.parametrize("option", ["outputs", "inputs", "alias", "in_place"])
def test_every_option_changes_the_result(option):
    rng, changed = random.Random(1), 0
    for _ in range(30):
        case = random_case(rng, 8)
        changed += best_order(**case).peak != best_order(**case | {option: []}).peak
    assert changed > 1


def test_larger_graphs_are_proved_and_their_order_has_the_peak():
    rng = random.Random(2)
    for _ in range(20):
        case = random_case(rng, 60)
        found = best_order(**case)
        assert found.exact and peak_of(found.order, **case) == found.peak <= peak_of(
            range(60), **case
        )


def test_beyond_the_limit_there_is_an_order_and_an_honest_bound():
    rng, proved = random.Random(3), 0
    for _ in range(15):
        case = random_case(rng, 40, reach=40)
        rough, best = best_order(**case, limit=20), best_order(**case, limit=200_000)
        assert best.exact and rough.lower_bound <= best.peak <= rough.peak == peak_of(
            rough.order, **case
        ) <= peak_of(range(40), **case)
        assert not rough.exact or rough.peak == best.peak
        proved += rough.exact
    assert proved < 15


def shortest(function, tries=3):
    "The fewest seconds of processor time of several tries."
    times = []
    for _ in range(tries):
        start = process_time()
        function()
        times.append(process_time() - start)
    return min(times)


def chain(calls):
    "The sizes, the uses and the last call of a chain."
    numbers = range(calls)
    return [(call * 7) % 11 for call in numbers], [[call - 1] for call in numbers], calls - 1


def test_the_time_for_a_chain_grows_with_its_length_and_nothing_recurses():
    sizes, uses, last = chain(3000)
    found = best_order(sizes, uses, [last])
    assert found.exact and found.order == tuple(range(3000))
    assert found.peak == max(a + b for a, b in zip(sizes, sizes[1:]))
    short, long = (
        shortest(lambda case=chain(calls): best_order(*case[:2], [case[2]]))
        for calls in (750, 3000)
    )
    assert long < 12 * short  # linear would be 4, quadratic 16


def test_skips_that_never_narrow_are_proved():
    "Cells that read the two cells before, each with four pairs of branches, as NASNet's."
    sizes, uses, cells = [4], [[-1]], [0, 0]

    def add(size, *used):
        sizes.append(size)
        uses.append(list(used))
        return len(sizes) - 1

    for _ in range(6):
        before, last = cells[-2:]
        near, far, sums = add(1, last), add(1, before), []
        for pair in range(4):
            branches = [add(1, add(3, near if (pair + side) % 2 else far)) for side in range(2)]
            sums.append(add(1, *branches))
        cells.append(add(4, *sums))
    found = best_order(sizes, uses, [cells[-1]])
    assert found.exact
    assert (
        found.peak
        == peak_of(found.order, sizes, uses, [cells[-1]])
        < peak_of(range(len(sizes)), sizes, uses, [cells[-1]])
    )


def test_numpy_numbers_are_numbers():
    assert best_order(np.array([5, 3]), [[-1], [0]], [1]).peak == 8 and isinstance(
        best_order(np.array([5, 3]), [[-1], [0]], [1]).peak, int
    )


def test_what_is_kept_is_the_sum_of_all_lives():
    for seed in range(20):
        case = random_case(random.Random(seed), 30)
        made = [[size] if isinstance(size, int) else list(size) for size in case["sizes"]]
        own = sum(
            sum(sizes) - sizes[0] * (call in case["alias"]) for call, sizes in enumerate(made)
        ) + sum(case["inputs"])
        named = {key: value for key, value in case.items() if key != "in_place"}
        assert (
            total_kept(case["sizes"], case["inputs"], case["alias"])
            == own
            == sum(life.size for life in lives(range(30), **named))
        )
        assert own >= peak_of(range(30), **case)


@pytest.mark.parametrize("case, words", [
    ({"sizes": [1], "uses": [[0]]}, "call 0 needs tensor (0, 0)"),
    ({"sizes": [1, 1], "uses": [[-1], [(0, 1)]]}, "call 1 needs tensor (0, 1)"),
    ({"sizes": [1], "uses": [[-1]], "outputs": [1]}, "the model's end needs tensor (1, 0)"),
    ({"sizes": [1], "uses": [[-2]], "inputs": [3]}, "needs input 1"),
    ({"sizes": [-1], "uses": [[-1]]}, "call 0 makes tensors of the sizes (-1,)"),
    ({"sizes": [1.5], "uses": [[-1]]}, "call 0"),
    ({"sizes": [1], "uses": []}, "uses of 0"),
    ({"sizes": [1], "uses": [[-1]], "inputs": [-3]}, "expected whole numbers"),
])
def test_bad_calls_are_one_sentence(case, words):
    with pytest.raises(ScheduleError) as caught:
        best_order(**case)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [[1, 0], [0], [0, 0], [0, 1, 2], []])
def test_an_order_that_cannot_be_is_refused(order):
    with pytest.raises(ScheduleError):
        memory_steps(order, [1, 1], [[-1], [0]])


def residual(blocks):
    "The sizes and the uses of a residual network with seven calls a block."
    sizes, uses = [9], [[-1]]
    for block in range(blocks):
        start = len(sizes) - 1
        for part in range(6):
            sizes.append((9, 9, 3, 3, 3, 9)[part])
            uses.append([len(sizes) - 2])
        sizes.append(9)
        uses.append([start, len(sizes) - 2])
    return sizes, uses


def test_the_time_for_a_residual_network_grows_with_its_blocks():
    few, many = residual(25), residual(100)
    assert len(few[0]) == 176 and best_order(*few, [175]).exact and best_order(*many, [700]).exact
    short, long = (
        shortest(lambda case=case: best_order(*case, [len(case[0]) - 1]), 5) for case in (few, many)
    )
    assert long < 12 * short  # linear would be 4, quadratic 16


# ---------------------------------------------------------------- models


def test_stride_2_needs_what_xla_reserves():
    for rescale in (True, False):
        assert (
            schedule_model(model_graph(build_model("stride_2", rescale=rescale))).peak
            == 77_120
            == 4 * (13_520 + 5_760)
        )


def a_model():
    """An image of 4,096 bytes, then tensors of 1,024; what is returned shares the memory of the
    first and of the third."""
    image = keras.Input((8, 8, 16))
    first = keras.layers.Conv2D(4, 3, padding="same")(image)
    third = keras.layers.ReLU()(keras.layers.ReLU()(first))
    flat = keras.layers.Dropout(0.5)(keras.layers.Reshape((256,))(third))
    return keras.Model(image, [flat, keras.layers.Activation("linear")(first)])


@pytest.mark.parametrize(
    "options, peak",
    [
        ({}, 3 * 1024),
        ({"unit": "elements"}, 3 * 256),
        ({"inputs": True}, 5 * 1024),
        ({"outputs": False}, 1024),
        ({"in_place": True}, 2 * 1024),
    ],
)
def test_options_of_a_model_do_what_they_say(options, peak):
    assert schedule_model(model_graph(a_model()), **options).peak == peak, options


@pytest.mark.parametrize(
    "function, in_place",
    [
        (keras.ops.erf, True),
        (lambda x: keras.ops.logaddexp(x, x), True),
        (lambda x: keras.ops.cast(x, "int32"), False),
        (lambda x: keras.ops.less(x, 0.0), False),
        (keras.ops.cumsum, False),
    ],
)
def test_only_what_works_number_by_number_in_one_type_may_write_over_its_input(function, in_place):
    image = keras.Input((6,))
    model = keras.Model(image, function(keras.layers.Dense(4)(image)))
    assert (1 in model_tensors(model_graph(model), in_place=True)["in_place"]) == in_place


def test_a_flatten_that_copies_needs_twice_the_memory():
    graph = model_graph(
        keras.Sequential([
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.Flatten(),
        ])
    )
    assert [schedule_model(graph, alias=alias).peak for alias in (True, False)] == [1024, 2048]


def test_batch_and_dtype_scale_the_bytes():
    graph = model_graph(build_model("stride_1"), batch_size=5)
    assert (
        schedule_model(graph).peak
        == 4 * schedule_model(graph, unit="elements").peak
        == 5 * schedule_model(model_graph(build_model("stride_1"))).peak
    )
    half = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, dtype="float16")])
    assert schedule_model(model_graph(half)).peak == 2 * 4


def test_text_has_no_size_but_its_number_of_elements():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    graph = model_graph(model)
    text = type(graph)(
        graph.name,
        tuple(
            type(call)(
                **vars(call) | {
                    "outputs": tuple(
                        type(one)(one.shape, "string", one.producer) for one in call.outputs
                    )
                }
            )
            for call in graph.calls
        ),
        graph.inputs,
        graph.outputs,
    )
    with pytest.raises(ScheduleError, match="no fixed size"):
        schedule_model(text)
    assert schedule_model(text, unit="elements").peak == 4


def test_numbers_of_a_model_go_into_every_function():
    """By hand, in tensors of 1,024 bytes: the image is 4; the convolution and two ReLUs make one
    each; the rest shares their memory."""
    tensors = model_tensors(model_graph(a_model()), inputs=True)
    order = range(len(tensors["sizes"]))
    named = {key: value for key, value in tensors.items() if key != "in_place"}
    assert [step // 1024 for step in memory_steps(order, **tensors)] == [
        4 + 1,
        1 + 1,
        1 + 2,
        2,
        2,
        2,
    ]
    assert peak_of(order, **tensors) == best_order(**tensors).peak == 5 * 1024
    assert sorted(life.size // 1024 for life in lives(order, **named)) == [1, 1, 1, 4]
    assert total_kept(tensors["sizes"], tensors["inputs"], tensors["alias"]) == 7 * 1024
