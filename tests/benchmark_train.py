"""How fast training is: plain model.fit, fashion_nb and PyTorch, in turns in one run on two cores.

Run it with: python tests/benchmark_train.py [--quick] [MODEL ...]
Nothing else should run beside it: PyTorch waits for its threads by spinning, and suffers most on
busy cores.
The images are made up; the time is for whole epochs without validation and checkpoints.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CORES = 2
BATCH = 128
# in one timed epoch: `fit` takes 0.1 s to begin
IMAGES = {"stride_2": 16_384, "stride_1": 3_072, "mnist_classifier_32_64p_64_128p": 2_048}
AUGMENTATIONS = ("none", "shift=2+flip+erase=0.5", "first_set")
PRECISIONS = {"float32": "float32", "mixed_bfloat16": "bfloat16"}
MAY_COMPILE_FOR = 600  # seconds; then torch.compile counts as not working here
ROUNDS, QUICK_ROUNDS = 9, 2


def made_up(count):
    "Images and labels for timing."
    import numpy as np

    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8), random.integers(
        0, 10, count
    ).astype(np.uint8)


def plain_fit(name, count):
    "An epoch as one would write it first."
    import keras

    from fashion_nb.models.zoo import build_model

    images, labels = made_up(count)
    model = build_model(name)
    model.compile(
        keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return lambda: model.fit(images, labels, batch_size=BATCH, verbose=0)


def own_fit(name, count, precision, augmentation):
    "An epoch as `fashion_nb.train` runs it: the draw of its order and augmentation, and the steps."
    import numpy as np

    from fashion_nb.training.config import TrainConfig
    from fashion_nb.training.learner import epoch_inputs, make_learner, run_steps

    images, labels = made_up(count)
    options = {
        "batch_size": BATCH,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "schedule": "constant",
    }
    config = TrainConfig(
        model=name, precision=precision, augmentation=augmentation, epochs=1000, **options
    )
    learner, number = make_learner(config, images, count // BATCH), iter(range(1, 10**6))

    def epoch():
        inputs, wanted = epoch_inputs(config, labels, np.arange(count), next(number))
        run_steps(learner, inputs, wanted, BATCH)

    return epoch


def torch_net(name):
    "The same network in PyTorch; it gives logits."
    from torch import nn

    def striding(stride, features):
        convolutions = [
            nn.Conv2d(1, 20, 3),
            nn.ReLU(),
            nn.Conv2d(20, 40, 3, stride=stride),
            nn.ReLU(),
        ]
        convolutions += [nn.Conv2d(40, 80, 3, stride=stride), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*convolutions, nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10))

    def normalized(channels, filters):
        normalize = nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)
        return [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), normalize]

    if name != "mnist_classifier_32_64p_64_128p":
        return {"stride_1": lambda: striding(1, 38_720), "stride_2": lambda: striding(2, 2_000)}[
            name
        ]()
    layers = [*normalized(1, 32), *normalized(32, 64), nn.MaxPool2d(2)]
    layers += [*normalized(64, 64), *normalized(64, 128), nn.MaxPool2d(2)]
    dense = [
        nn.Flatten(),
        nn.Linear(6_272, 128),
        nn.ReLU(),
        nn.BatchNorm1d(128, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *dense, nn.Dropout(0.2), nn.Linear(128, 10))


def torch_fit(name, count, precision, layout, compiled):
    "An epoch in PyTorch: its loop, its fused Adam, the images in memory as bytes."
    import torch

    images, labels = made_up(count)
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=order)
    y, net = torch.from_numpy(labels.astype("int64")), torch_net(name).to(memory_format=order)
    optimizer = torch.optim.Adam(net.parameters(), 0.001, fused=True)
    forward = torch.compile(net) if compiled else net

    def epoch():
        shuffled, total = torch.randperm(count), 0
        for start in range(0, count, BATCH):
            rows = shuffled[start : start + BATCH]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
                logits = forward(x[rows].float() / 255)
            loss = torch.nn.functional.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total)

    return epoch


def torch_peak(precision, size=2048):
    "Arithmetic of a big matrix product, in numbers of 32 or 16 bits."
    import torch

    kind = torch.float32 if precision == "float32" else torch.bfloat16
    left, right = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)

    def products():
        for _ in range(4):
            left @ right

    return products


def serve():
    "A worker: one JSON request a line; it makes a task, or runs one and answers with its seconds."
    tasks, makers = {}, {"plain": plain_fit, "own": own_fit, "torch": torch_fit, "peak": torch_peak}
    answers, sys.stdout = sys.stdout, sys.stderr
    if "torch" in sys.argv:
        import torch

        torch.set_num_threads(CORES)
        torch.set_flush_denormal(True)
    for line in sys.stdin:
        label, kind, *options = json.loads(line)
        if kind == "run":
            start, used = time.perf_counter(), time.process_time()
            tasks[label]()
            answer = {
                "seconds": time.perf_counter() - start,
                "processor": time.process_time() - used,
            }
        else:
            tasks[label] = makers[kind](*options)
            tasks[label]()  # compiles, and warms up
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    "A process that holds tasks of one library."

    def __init__(self, library):
        command = [sys.executable, __file__, "--worker", library]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.library, self.process = library, subprocess.Popen(command, text=True, **pipes)

    def ask(self, label, kind, *options, patience=None):
        "Send a request; None if the process died or, with `patience`, took longer than that."
        from threading import Timer

        watch = Timer(patience or 10**6, self.process.kill)
        watch.start()
        try:
            print(json.dumps([label, kind, *options]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watch.cancel()
        return json.loads(answer) if answer else None

    def close(self):
        "End it; a plain end of input would wait for a compiler."
        self.process.kill()
        self.process.wait()


def best_torch(name, count, precision, quick):
    """PyTorch's fastest way for a network, a live worker with it, and the images a second of every
    way."""
    found = {}
    for layout, compiled in (
        ("channels_last", False),
        ("contiguous", False),
        ("channels_last", True),
    ):
        if quick and (compiled or layout == "contiguous"):
            continue
        worker = Worker("torch")
        way = (precision, layout, compiled)
        label = f"{layout}{', compiled' if compiled else ''}"
        if worker.ask("try", "torch", name, count, *way, patience=MAY_COMPILE_FOR) is None:
            found[label] = (0, way)
        else:
            found[label] = (max(count / worker.ask("try", "run")["seconds"] for _ in range(3)), way)
        worker.close()
    label = max(found, key=lambda each: found[each][0])
    return label, found[label][1], {each: round(rate) for each, (rate, _) in found.items()}


def training_flops(name):
    """Arithmetic of one image in a training step: forwards, by the weights, and by what each layer
    takes in, but for the image."""
    from fashion_nb.analysis.cost import model_cost
    from fashion_nb.models.zoo import build_model

    cost = model_cost(build_model(name))
    first = next(layer.macs for layer in cost.layers if layer.macs)
    return 2 * (3 * cost.total.macs - first)


def measure(name, rounds, quick):
    """By task, round by round: images a second (peaks: GFLOP/s) and cores kept busy; and notes on
    PyTorch."""
    count, tasks, notes = IMAGES[name], [], []
    tasks.append(("plain fit", "keras", "plain", name, count))
    for precision in PRECISIONS:
        for augmentation in AUGMENTATIONS:
            tasks.append((
                f"fashion_nb {precision} {augmentation}",
                "keras",
                "own",
                name,
                count,
                precision,
                augmentation,
            ))
        label, way, found = best_torch(name, count, precision, quick)
        tasks.append((f"PyTorch {precision}", "torch", "torch", name, count, *way))
        notes.append(f"PyTorch {precision}: {label} taken from {found} (0: did not work)")
    for precision in PRECISIONS:
        tasks.append((f"peak {precision}", "torch", "peak", precision))
    workers = {library: Worker(library) for library in ("keras", "torch")}
    try:
        for label, library, *request in tasks:
            if workers[library].ask(label, *request) is None:
                raise SystemExit(f"{name}: {label} failed")
        rates, busy = {label: [] for label, *_ in tasks}, {label: [] for label, *_ in tasks}
        for _ in range(rounds):
            for label, library, kind, *_ in tasks:
                answer = workers[library].ask(label, "run")
                rates[label].append(
                    (4 * 2 * 2048**3 / 1e9 if kind == "peak" else count) / answer["seconds"]
                )
                busy[label].append(answer["processor"] / answer["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    return rates, busy, notes


def ratio(rates, one, other):
    "How many times faster: the median over the rounds, neighbors in time against each other."
    return statistics.median(a / b for a, b in zip(rates[one], rates[other]))


def best_of(rates, who):
    "The fastest task of fashion_nb or PyTorch without augmentation."
    labels = [
        label
        for label in rates
        if label.startswith(who) and label.split()[-1] in ("none", *PRECISIONS)
    ]
    return max(labels, key=lambda label: max(rates[label]))


def show(name, rates, busy, notes):
    "Print the table of a network."
    flops = training_flops(name)
    peaks = {precision: max(rates[f"peak {precision}"]) for precision in PRECISIONS}
    print(f"\n{name}: {flops / 1e6:.1f} MFLOP an image in training; measured peak", end=" ")
    print(", ".join(f"{precision} {peak:.0f} GFLOP/s" for precision, peak in peaks.items()))
    print(
        f"{'':54}  images/s     best   cores   CPU µs/image  of peak  × plain  × PyTorch  ×"
        " unaugmented"
    )
    for label, each in rates.items():
        if label.startswith("peak"):
            continue
        precision = next((p for p in PRECISIONS if p in label), "float32")
        spent = min(1e6 * cores / rate for cores, rate in zip(busy[label], each))
        row = (
            f"{label:54}  {statistics.median(each):8.0f} {max(each):8.0f}"
            f" {statistics.median(busy[label]):7.2f} {spent:14.0f}"
        )
        row += (
            f" {max(each) * flops / 1e9 / peaks[precision]:8.0%}"
            f" {ratio(rates, label, 'plain fit'):8.2f}"
        )
        row += f" {ratio(rates, label, f'PyTorch {precision}'):10.2f}"
        if label.startswith("fashion_nb"):
            row += f" {ratio(rates, label, f'fashion_nb {precision} none'):14.2f}"
        print(row)
    ours, theirs = best_of(rates, "fashion_nb"), best_of(rates, "PyTorch")
    print(f"best against best: {ours} is {ratio(rates, ours, theirs):.2f} × {theirs}")
    for precision in PRECISIONS:
        needed = 1.5 * max(rates["plain fit"]) * flops / 1e9 / peaks[precision]
        print(f"plain fit × 1.5 would take {needed:.0%} of the {precision} peak")
    print("\n".join(notes))
    if statistics.median(busy["peak float32"]) < 0.9 * CORES:
        print(
            "the cores were shared with other work: trust the processor time, and no ratio with"
            " PyTorch"
        )
    sys.stdout.flush()


def main():
    "Read the arguments, measure each network and print."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=list(IMAGES), metavar="MODEL", help=", ".join(IMAGES)
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds, and PyTorch with its usual best settings only",
    )
    chosen = parser.parse_args()
    if wrong := set(chosen.models) - set(IMAGES):
        parser.error(f"no network {', '.join(sorted(wrong))}: expected some of {', '.join(IMAGES)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{CORES} cores, batches of {BATCH}, load of the machine before the start {load:.1f}; "
          "ratios are medians over rounds, 'best' and 'of peak' the fastest round", flush=True)
    for name in chosen.models:
        show(name, *measure(name, QUICK_ROUNDS if chosen.quick else ROUNDS, chosen.quick))


if __name__ == "__main__":
    serve() if "--worker" in sys.argv else main()
