"""Small trainings in child processes that can be killed at any moment, and how to compare what is
left of them.

Loading TensorFlow takes far longer than these trainings, so one process loads it and forks a child
for each of them
(`Nursery`). A `fake` nursery does without Keras: its network is a row of numbers, but all files are
written by the real
`train`. There a training takes milliseconds, and every moment at which something is written can be
tried.
"""
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from fashion_nb.core.interrupt import check_interrupt
from fashion_nb.data.fashion_mnist import FashionMNIST, Split
from fashion_nb.training import learner as learner_room
from fashion_nb.training import loop as loop_room
from fashion_nb.training.checkpoints import LOG_COLUMNS, read_checkpoint
from fashion_nb.training.config import TrainConfig
from fashion_nb.training.loop import train
from fashion_nb.training.runs import load_run


def made_split(size, seed):
    "Images of noise with a bright bar, whose place is the class."
    random = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.uint8) % 10
    images = random.integers(0, 60, (size, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 4] += 150
    return Split(images, labels)


@lru_cache
def made_data(size=240):
    return FashionMNIST(made_split(size, 0), made_split(50, 1), "made for the tests", Path("."))


# How to compare runs


def saved_weights(path):
    "The arrays in a .keras file by name, as bytes; of the fake nursery's file all bytes."
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    import h5py

    found = {}
    with zipfile.ZipFile(path) as archive, h5py.File(
        io.BytesIO(archive.read("model.weights.h5"))
    ) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
            )
        )
    assert found
    return found


def timeless(history):
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "time")}
        for row in history
    ]


def assert_same_run(one, other):
    "Two finished runs hold the same, to the last bit; only the times may differ."
    one, other = load_run(one), load_run(other)
    assert one.config == other.config and one.status == other.status == "finished"
    names = [name for name in LOG_COLUMNS if name != "seconds"]
    assert one.history[names].equals(other.history[names]) and len(one.history) == one.config.epochs
    assert list(one.checkpoints) == list(other.checkpoints)
    for epoch, path in one.checkpoints.items():
        (arrays, history), (others, their_history) = read_checkpoint(path), read_checkpoint(
            other.checkpoints[epoch]
        )
        assert timeless(history) == timeless(their_history) and arrays.keys() == others.keys()
        for name, array in arrays.items():
            assert (
                array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes()
            ), (path, name)
    assert saved_weights(one.folder / "model.keras") == saved_weights(other.folder / "model.keras")
    assert leftovers(one.folder) == leftovers(other.folder) == []


def leftovers(folder):
    return [path.name for path in Path(folder).rglob(".*")]


# What a child does


@contextmanager
def _placed(config, *sizes):
    yield "no device"


def _described(device=None):
    started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    return {"started": started, "seconds": None, "process": os.getpid(), "device": device,
        "backend": "none", "versions": {}, "git_commit": None}


class FakeNet:
    def __init__(self, state):
        self.state = state

    def save(self, path):
        Path(path).write_bytes(b"".join(self.state[name].tobytes() for name in sorted(self.state)))


def do_without_keras(pause=0.0, size=50):
    "Put numbers in the place of the network: whatever the next epoch depends on is in the state."
    def learner(config, images, batches):
        return {"net/000": np.full(size, 0.5), "optimizer/000": np.array(0)}

    def epoch(state, config, labels, parts, number, watcher, wishes=None):
        inputs, wanted = learner_room.epoch_inputs(config, labels, parts[0], number)
        for batch in range(1, 4):
            state["net/000"] = np.sin(
                3 * state["net/000"] + inputs["index"][: batch + 1].mean() + np.arange(size)
            )
            state["optimizer/000"] = state["optimizer/000"] + 1
            watcher.batch(number, batch)
            check_interrupt()
            time.sleep(pause)
        loss = float(np.abs(state["net/000"]).mean())
        row = {
            "epoch": number,
            "loss": loss,
            "accuracy": loss / 2,
            "val_loss": loss,
            "val_accuracy": 1 - number / 100,
        }
        return row, {name: value.copy() for name, value in state.items()}

    loop_room.make_learner, loop_room.train_epoch = learner, epoch
    loop_room.get_state = dict
    loop_room.set_state = lambda learner, state: learner.update(state)
    loop_room.check_state = lambda learner, state: None
    loop_room.build_from = lambda config, state: FakeNet(state)
    loop_room.placed, loop_room.describe_session = _placed, _described


CTRL_C = ("interrupt", "interrupt swallowed", "interrupt twice")


class Disturbance:
    """Count the moments at which a run writes a file, removes one or has trained on some batches;
    strike at one of them."""

    def __init__(self, at=None, deed=None):
        self.at, self.deed, self.seen, self.full = at, deed, [], False

    def comes(self, what):
        self.seen.append(what)
        return len(self.seen) == self.at

    def strike(self):
        if self.deed not in CTRL_C:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            for _ in range(2 if self.deed == "interrupt twice" else 1):
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            # as native code does with an exception in its callbacks
            if self.deed != "interrupt swallowed":
                raise

    def watch(self):
        from fashion_nb.training.learner import Watcher

        replace, unlink, batch = os.replace, Path.unlink, Watcher.batch

        def watched_replace(source, target, **options):
            now = self.comes(f"write {Path(target).name}")
            self.full = self.full or now and self.deed == "full"
            if self.full or now and self.deed == "full once":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if now and self.deed == "half":
                os.truncate(source, os.path.getsize(source) // 2)
            if now and self.deed in ("half", "before", *CTRL_C):
                self.strike()
            replace(source, target, **options)
            if now and self.deed == "after":
                self.strike()

        def watched_unlink(path, **options):
            if (
                path.name.startswith("epoch-")
                and self.comes(f"remove {path.name}")
                and self.deed != "full"
            ):
                self.strike()
            unlink(path, **options)

        def watched_batch(watcher, epoch, number):
            if self.comes(f"batch {number} of epoch {epoch}") and "full" not in self.deed:
                self.strike()
            batch(watcher, epoch, number)

        os.replace, Path.unlink, Watcher.batch = watched_replace, watched_unlink, watched_batch


def obey(order, fake, pipe):
    "Train as ordered, in a process that was just forked, and say into the pipe how it ended."
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if fake:
        do_without_keras(order.get("pause", 0.0), order.get("size", 50))
    disturbance = Disturbance(order.get("at"), order.get("deed", ""))
    disturbance.watch()
    answer = {"error": None}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            train(
                TrainConfig.from_json(order["config"]),
                order["folder"],
                made_data(order.get("images", 240)),
                progress=False,
            )
        except BaseException as error:
            answer["error"] = f"{type(error).__name__}: {error}"[:5_000]
    answer |= {
        "seen": disturbance.seen,
        "warnings": list(dict.fromkeys(str(one.message)[:500] for one in warned))[:20],
    }
    os.write(pipe, json.dumps(answer).encode())
    os._exit(0)


def fork(order, fake):
    "Start a child; returns what is needed to follow it."
    made_data(order.get("images", 240))
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            obey(order, fake, write)
        finally:
            os._exit(70)
    os.close(write)
    return {
        "pid": pid,
        "pipe": read,
        "start": time.monotonic(),
        "after": order.get("after", 300),
        "signal": order.get("signal", signal.SIGKILL),
    }


def follow(child):
    "Wait for a child, signaling it when its time has come; returns the answer to its order."
    while (ended := os.waitpid(child["pid"], os.WNOHANG))[0] == 0:
        if time.monotonic() - child["start"] > child["after"]:
            # not waited for yet, so the number is still this child's
            os.kill(child["pid"], child["signal"])
            child["after"] = 300
        time.sleep(0.002)
    with os.fdopen(child["pipe"], "rb") as pipe:
        said = pipe.read()
    answer = json.loads(said) if said else {"error": "killed", "seen": [], "warnings": []}
    return answer | {
        "pid": child["pid"],
        "status": os.waitstatus_to_exitcode(ended[1]),
        "seconds": time.monotonic() - child["start"],
    }


def serve(fake):
    "The nursery's process: a line of orders in, a line of answers out."
    import filelock  # noqa: F401
    import pandas  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import tensorboard.compat.proto.event_pb2  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401
    import tqdm.auto  # noqa: F401

    if not fake:
        # loads TensorFlow, but starts none of its threads yet: what is forked is whole
        import keras  # noqa: F401
    print("ready", flush=True)
    for line in sys.stdin:
        children = [fork(order, fake) for order in json.loads(line)]
        print(json.dumps([follow(child) for child in children]), flush=True)


class Nursery:
    "A process that trains in children of its own."

    def __init__(self, fake=False):
        environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "fake" if fake else "real"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.ready = False

    def many(self, *orders):
        """Carry out orders at the same time: config and folder, and perhaps after and signal, at
        and deed, pause, size, images."""
        if not self.ready:
            assert self.process.stdout.readline() == "ready\n"
            self.ready = True
        orders = [
            order | {"config": order["config"].to_json(), "folder": str(order["folder"])}
            for order in orders
        ]
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, config, folder, **order):
        return self.many({"config": config, "folder": folder, **order})[0]

    def close(self):
        # it has no child now, and TensorFlow would take seconds to end by itself
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


if __name__ == "__main__":
    serve(fake=sys.argv[1] == "fake")
