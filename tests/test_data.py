"""Faults that the data chapter does not show: damaged folders and caches, bad networks, two
processes at once."""
import errno
import gzip
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fashion_nb.data import fashion_mnist as fashion_mnist_room
from fashion_nb.data import sources as sources_room
from fashion_nb.data.fashion_mnist import fetch_fashion_mnist, load_fashion_mnist
from fashion_nb.data.idx import FILES, DataError, DownloadError
from fashion_nb.data.sources import cache_folder, download

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


class Host:
    "A web server on this machine that serves the files, or misbehaves as told."

    def __init__(self, files):
        self.files, self.requests, self.answers, self.pause = files, [], [], 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                host, name = self, handler.path.strip("/")
                host.requests.append(name)
                answer = host.answers.pop(0) if host.answers else "good"
                body = host.files[name]
                if answer == "nonsense":
                    return handler.wfile.write(b"this is not HTTP\r\n\r\n")
                if answer == "error":
                    return handler.send_error(500)
                if answer == "wrong":
                    body = gzip.compress(b"<html>sign in to the network</html>")
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                end = len(body) // 2 if answer == "broken" else len(body)
                for i in range(0, end, 1 << 16):
                    handler.wfile.write(body[i : min(i + (1 << 16), end)])
                    time.sleep(host.pause)

            def log_message(self, *arguments):
                pass

            def handle(handler):
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def host(packed):
    host = Host({path.name: path.read_bytes() for path in packed.iterdir()})
    yield host
    host.server.shutdown()
    host.server.server_close()


def linked(source, folder):
    "A folder that holds the files of another, without copying them."
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        os.link(path, folder / path.name)
    return folder


def replace(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def changed(content, position, new):
    return content[:position] + new + content[position + len(new) :]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (TRAIN_IMAGES, None, "lacks train-images-idx3-ubyte"),
        (TRAIN_IMAGES, lambda c: gzip.compress(c, 1)[:-1000], "is truncated"),
        (TRAIN_LABELS, lambda c: c, "is not a sound gzip file"),
        (
            TEST_IMAGES,
            lambda c: changed(gzip.compress(c, 1), 5000, bytes(50)),
            "is not a sound gzip file",
        ),
        (
            TEST_LABELS,
            lambda c: gzip.compress(changed(c, 3, b"\3")),
            "magic number [2051], expected [2049]",
        ),
        (
            TEST_LABELS,
            lambda c: gzip.compress(changed(c, 4, bytes(4))),
            "shape is (0,), expected (10000,)",
        ),
        (TEST_LABELS, lambda c: gzip.compress(c + b"\1"), "holds 10,009 bytes, expected 10,008"),
        (TEST_LABELS, lambda c: gzip.compress(c[:-1]), "holds 10,007 bytes, expected 10,008"),
        (
            TRAIN_LABELS,
            lambda c: gzip.compress(changed(c, 500, b"\x0a")),
            "holds the label 10, expected 0 to 9",
        ),
        (TEST_IMAGES, lambda c: gzip.compress(flipped(c, 4_000_000), 1), "has the SHA-256"),
        (TEST_LABELS, lambda c: gzip.compress(b""), "magic number []"),
    ],
)
def test_a_damaged_folder_that_was_asked_for_is_refused(
    file, damage, message, packed, contents, tmp_path, empty_home
):
    folder = linked(packed, tmp_path / "asked")
    path = folder / f"{file.name}.gz"
    path.unlink()
    if damage:
        path.write_bytes(damage(contents[file.name]))
    with pytest.raises(DataError) as error:
        load_fashion_mnist(folder)
    assert message in str(error.value) and file.name in str(error.value) and ":" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (cache_folder() / file.name).exists()


def test_something_that_cannot_be_read_is_named(packed, tmp_path, empty_home):
    folder = linked(packed, tmp_path / "asked")
    (folder / f"{TEST_LABELS.name}.gz").unlink()
    (folder / f"{TEST_LABELS.name}.gz").mkdir()
    with pytest.raises(DataError, match=f"{TEST_LABELS.name}.gz cannot be read .*directory"):
        load_fashion_mnist(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_named(packed, tmp_path, empty_home):
    folder = tmp_path / "asked"
    shutil.copytree(packed, folder)
    (folder / f"{TEST_LABELS.name}.gz").chmod(0)
    with pytest.raises(DataError, match="cannot be read .*Permission denied"):
        load_fashion_mnist(folder)


def test_the_variable_is_never_replaced_by_another_source(
    packed, tmp_path, empty_home, monkeypatch
):
    load_fashion_mnist(packed)  # now the cache could serve
    monkeypatch.setenv("FASHION_NB_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"typo \(FASHION_NB_DATA\) is not a folder"):
        load_fashion_mnist()
    monkeypatch.setenv("FASHION_NB_DATA", str(packed))
    assert load_fashion_mnist().source == "FASHION_NB_DATA"


def test_a_folder_that_changed_after_it_was_verified_is_looked_at_again(
    packed, contents, tmp_path, empty_home
):
    folder = linked(packed, tmp_path / "asked")
    load_fashion_mnist(folder)
    replace(
        folder / f"{TEST_LABELS.name}.gz", gzip.compress(flipped(contents[TEST_LABELS.name], 100))
    )
    with pytest.raises(DataError, match="SHA-256"):
        load_fashion_mnist(folder)


@pytest.mark.parametrize("place", ["keras", "debian"])
def test_each_place_on_the_machine_is_found_and_then_the_cache(place, packed, empty_home, contents):
    folder = {
        "keras": empty_home / ".keras/datasets/fashion-mnist",
        "debian": sources_room.DEBIAN_FOLDER,
    }[place]
    linked(packed, folder)
    first, second = load_fashion_mnist(), load_fashion_mnist()
    assert {"keras": "Keras's cache", "debian": "Debian's package dataset-fashion-mnist"}[
        place
    ] == first.source
    assert second.source == "the cache"
    assert second.train.images.tobytes() == contents[TRAIN_IMAGES.name][16:]
    assert second.test.labels.tobytes() == contents[TEST_LABELS.name][8:]


@pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: b"", lambda c: flipped(c, 5_000)])
def test_a_corrupt_cache_is_reported_set_aside_and_fetched_again(
    damage, packed, empty_home, contents
):
    linked(packed, empty_home / ".keras/datasets/fashion-mnist")
    load_fashion_mnist()
    cached = cache_folder() / TEST_LABELS.name
    replace(cached, damage(contents[TEST_LABELS.name]))
    with pytest.warns(
        UserWarning, match="set aside as t10k-labels-idx1-ubyte.corrupt and is fetched again"
    ):
        again = load_fashion_mnist()
    assert again.test.labels.tobytes() == contents[TEST_LABELS.name][8:]
    assert cached.read_bytes() == contents[TEST_LABELS.name]
    assert cached.with_name(f"{cached.name}.corrupt").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_fashion_mnist()


def test_a_corrupt_cache_that_cannot_be_set_aside_is_skipped(
    packed, empty_home, contents, monkeypatch
):
    linked(packed, empty_home / ".keras/datasets/fashion-mnist")
    load_fashion_mnist()
    replace(cache_folder() / TEST_LABELS.name, b"")

    def taken(path, target):  # by another process that was first, say
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "replace", taken)
    with pytest.warns(UserWarning, match="it is skipped"):
        assert load_fashion_mnist().test.labels.tobytes() == contents[TEST_LABELS.name][8:]


def test_verify_finds_what_size_and_time_do_not_show(packed, empty_home, contents):
    linked(packed, empty_home / ".keras/datasets/fashion-mnist")
    load_fashion_mnist()
    cached = cache_folder() / TEST_LABELS.name
    status = cached.stat()
    replace(cached, flipped(contents[TEST_LABELS.name], 5_000))
    os.utime(cached, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.warns(UserWarning, match="SHA-256"):
        assert (
            load_fashion_mnist(verify=True).test.labels.tobytes() == contents[TEST_LABELS.name][8:]
        )


def test_without_room_for_a_cache_the_data_set_is_held_in_memory(
    packed, empty_home, monkeypatch, contents
):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources_room, "write_atomically", full)
    with pytest.warns(
        UserWarning, match="cannot be written .No space left on device.; loading into memory"
    ):
        loaded = load_fashion_mnist(packed)
    assert loaded.train.labels.tobytes() == contents[TRAIN_LABELS.name][8:]
    assert not loaded.train.images.flags.writeable


def test_a_full_disk_stops_the_download_with_a_sentence(host, empty_home, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources_room, "write_atomically", full)
    with pytest.raises(
        DownloadError, match="cannot be written .No space left on device.: make room"
    ):
        download(TEST_LABELS, (host.url,), pause=0)
    assert not (cache_folder() / TEST_LABELS.name).exists()
    assert len(host.requests) == 1


def test_the_list_of_verified_files_may_be_damaged(packed, empty_home):
    load_fashion_mnist(packed)
    for content in ("", "[1, 2]", "{", '{"a": "b"}'):
        (cache_folder() / "verified.json").write_text(content)
        assert len(load_fashion_mnist(packed).test) == 10_000


@pytest.mark.parametrize(
    "answers",
    [
        ["good"],
        ["error"],
        ["nonsense"],
        ["wrong"],
        ["broken"],
        ["broken", "broken"],
        ["error", "wrong", "broken"],
    ],
    ids="-".join,
)
def test_a_bad_host_is_survived(answers, host, empty_home, contents):
    host.answers = [*answers, "good"] if answers != ["good"] else answers
    tries = len(host.answers)
    path = download(TEST_LABELS, (host.url,), pause=0.01)
    assert path.read_bytes() == contents[TEST_LABELS.name]
    assert host.requests == [f"{TEST_LABELS.name}.gz"] * tries
    assert sorted(path.name for path in cache_folder().iterdir()) == [
        TEST_LABELS.name,
        f"{TEST_LABELS.name}.lock",
        "verified.json",
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("error", "the host answers 500 Internal Server Error"),
        ("wrong", "begins with the magic number"),
        ("broken", "bytes read, "),
        ("nonsense", "this is not HTTP"),
    ],
)
def test_a_host_that_stays_bad_is_one_sentence_and_leaves_nothing(answer, said, host, empty_home):
    host.answers = [answer] * 3
    with pytest.raises(
        DownloadError, match="could not be fetched from .* check the network"
    ) as error:
        download(TEST_LABELS, (host.url,), tries=3, pause=0)
    assert said in str(error.value) and "\n" not in str(error.value) and len(host.requests) == 3
    assert len(str(error.value)) < 420 and "ConnectionPool" not in str(error.value)
    assert [path.name for path in cache_folder().iterdir()] == [f"{TEST_LABELS.name}.lock"]


def test_the_second_mirror_is_tried(host, empty_home, contents):
    path = download(TEST_LABELS, ("http://127.0.0.1:9/", host.url), pause=0.01)
    assert path.read_bytes() == contents[TEST_LABELS.name]


def test_what_a_killed_process_left_does_not_spoil_the_download(host, empty_home, contents):
    left = cache_folder() / f"{TEST_LABELS.name}.download"
    left.mkdir(parents=True)
    (left / f"{TEST_LABELS.name}.gz").write_bytes(b"something else")
    assert download(TEST_LABELS, (host.url,), pause=0.01).read_bytes() == contents[TEST_LABELS.name]
    assert not left.exists()


def test_ctrl_c_leaves_nothing_half_written(host, empty_home, monkeypatch):
    def interrupted(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources_room, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(TEST_LABELS, (host.url,))
    assert [path.name for path in cache_folder().iterdir()] == [f"{TEST_LABELS.name}.lock"] and len(
        host.requests
    ) == 1


def test_no_network_says_what_to_do(empty_home):
    with pytest.raises(
        DownloadError,
        match=r"\(.*Connection refused\): check the network, install Debian's package",
    ) as error:
        download(TEST_LABELS, ("http://127.0.0.1:9/",), tries=2, pause=0.01)
    assert "\n" not in str(error.value)


def child(code, url):
    program = (
        "from fashion_nb.data.sources import *\nfrom fashion_nb.data.idx import"
        f" FILES\n{code.format(url=url)}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_at_once_fetch_a_file_once(host, empty_home, contents):
    host.pause = 0.005
    children = [child("download(FILES[2], ('{url}',))", host.url) for _ in range(2)]
    for process in children:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
    assert len(host.requests) == 1
    assert (cache_folder() / TEST_IMAGES.name).read_bytes() == contents[TEST_IMAGES.name]


def test_a_killed_download_leaves_no_half_file_and_the_next_one_is_whole(
    host, empty_home, contents
):
    host.pause = 0.02
    process = child("download(FILES[2], ('{url}',))", host.url)
    part = cache_folder() / f"{TEST_IMAGES.name}.download" / f"{TEST_IMAGES.name}.gz"
    deadline = time.time() + 120
    while not (part.exists() and part.stat().st_size > 300_000):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close(), process.stderr.close()
    assert not (cache_folder() / TEST_IMAGES.name).exists() and part.stat().st_size < len(
        host.files[part.name]
    )
    host.pause = 0
    assert download(TEST_IMAGES, (host.url,)).read_bytes() == contents[TEST_IMAGES.name]
    assert host.requests == [part.name] * 2 and not part.parent.exists()


def program(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_debians_package_serves_where_the_hosts_are_out_of_reach(
    packed, empty_home, tmp_path, monkeypatch
):
    tools = tmp_path / "bin"
    tools.mkdir()
    inside = f'"$3/{sources_room.DEBIAN_FOLDER.relative_to("/")}"'
    program(tools, "apt-get", '#!/bin/sh\n[ "$1" = download ] && touch "$3.deb"\n')
    program(tools, "dpkg", f"#!/bin/sh\nmkdir -p {inside} && cp {packed}/*.gz {inside}\n")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setattr(download, "__defaults__", (("http://127.0.0.1:9/",), 1, 0))
    assert len(fetch_fashion_mnist().train) == 60_000
    assert load_fashion_mnist().source == "the cache"


def test_a_full_disk_while_the_package_is_unpacked_is_one_sentence(
    packed, empty_home, tmp_path, monkeypatch
):
    tools = tmp_path / "bin"
    tools.mkdir()
    inside = f'"$3/{sources_room.DEBIAN_FOLDER.relative_to("/")}"'
    program(tools, "apt-get", '#!/bin/sh\n[ "$1" = download ] && touch "$3.deb"\n')
    program(tools, "dpkg", f"#!/bin/sh\nmkdir -p {inside} && cp {packed}/*.gz {inside}\n")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setattr(download, "__defaults__", (("http://127.0.0.1:9/",), 1, 0))

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fashion_mnist_room, "write_atomically", full)
    with pytest.raises(DownloadError, match="check the network.*No space left on device") as error:
        fetch_fashion_mnist()
    assert "\n" not in str(error.value)


def test_neither_host_nor_package_gives_one_sentence(empty_home, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    program(tools, "apt-get", "#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    program(tools, "dpkg", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setattr(download, "__defaults__", (("http://127.0.0.1:9/",), 1, 0))
    with pytest.raises(DownloadError, match="check the network.*Unable to locate package") as error:
        fetch_fashion_mnist()
    assert "\n" not in str(error.value)


def test_a_later_load_takes_a_small_part_of_the_first(packed, empty_home):
    def seconds(**options):
        start = time.perf_counter()
        load_fashion_mnist(packed, **options)
        return time.perf_counter() - start

    load_fashion_mnist(packed)
    first, later = map(min, zip(*[(seconds(verify=True), seconds()) for _ in range(3)]))  # in turns
    assert later <= first / 5


def test_labels_and_images_stay_together_in_a_split(data):
    train, validation = fashion_mnist_room.split_validation(data.train, 5_000, seed=3)
    images = {image.tobytes(): label for image, label in zip(data.train.images, data.train.labels)}
    for part in (train, validation):
        assert all(
            images[image.tobytes()] == label
            for image, label in zip(part.images[:500], part.labels[:500])
        )
    assert not {image.tobytes() for image in validation.images} & {
        image.tobytes() for image in train.images
    }
    assert np.array_equal(np.bincount(validation.labels), np.full(10, 500))
