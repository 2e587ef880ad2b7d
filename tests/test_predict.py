"""Pictures of all kinds, pictures that are none, and the network that comes with the package."""
import io
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fashion_nb.data.idx import CLASS_NAMES
from fashion_nb.prediction import predict as predict_room
from fashion_nb.prediction import pretrained as pretrained_room
from fashion_nb.prediction.files import predict_files
from fashion_nb.prediction.image import PredictError, prepare
from fashion_nb.prediction.novelty import FALSE_ALARMS
from fashion_nb.prediction.predict import predict
from fashion_nb.prediction.pretrained import (
    load_novelty,
    load_pretrained,
    pretrained_names,
    shipped_details,
)


@pytest.fixture(scope="module")
def boot(data):
    return data.test.images[0, ..., 0]


@pytest.fixture(scope="module")
def canvas(boot):
    "The boot enlarged eight times, with a margin, light on dark."
    return Image.fromarray(np.kron(np.pad(boot, 6), np.ones((8, 8), np.uint8)))


# ---------------------------------------------------------------- kinds of pictures


@pytest.mark.parametrize(
    "mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "I;16", "I", "F", "HSV"]
)
@pytest.mark.parametrize("negated", [False, True])
def test_every_mode_comes_back(boot, canvas, mode, negated):
    gray = canvas.point(lambda v: 255 - v) if negated else canvas
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    elif mode == "I":
        picture = Image.fromarray(np.asarray(gray).astype(np.int32) * 257)
    elif mode == "F":
        picture = Image.fromarray(np.asarray(gray).astype(np.float32) / 255)
    else:
        picture = (
            gray.convert("RGB").convert(mode)
            if mode in ("CMYK", "YCbCr", "HSV")
            else gray.convert(mode)
        )
    np.testing.assert_allclose(prepare(picture)[-1].image.astype(int), boot, atol=4)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".pgm", ".jpg", ".gif", ".webp"])
def test_every_format_comes_back(boot, canvas, suffix, tmp_path):
    path = tmp_path / f"boot{suffix}"
    canvas.save(
        path,
        **({"quality": 95} if suffix == ".jpg" else {"lossless": True} if suffix == ".webp" else {})
    )
    error = np.abs(prepare(path)[-1].image.astype(int) - boot)
    assert error.mean() < (8 if suffix == ".jpg" else 1)


@pytest.mark.parametrize(("kind", "suffix"), [("AVIF", ".avif"), ("HEIF", ".heic")])
def test_the_formats_of_phones_come_back(boot, canvas, kind, suffix, tmp_path):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"boot{suffix}"
    try:
        canvas.convert("RGB").save(path, kind, quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    assert np.abs(prepare(path)[-1].image.astype(int) - boot).mean() < 6


def test_a_phone_picture_names_the_extra_that_would_read_it(tmp_path, monkeypatch):
    from fashion_nb.prediction import image as image_room

    monkeypatch.setattr(image_room, "_register_heif", lambda: False)
    monkeypatch.setattr(image_room, "_registered", lambda images: {"PNG", "JPEG"})
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with pytest.raises(PredictError, match=r"this is HEIC.*fashion_nb\[heic\]"):
        prepare(tmp_path / "photo.heic")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(boot, canvas, orientation, tmp_path):
    # the transposition that brings an upright picture to how it is stored
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = canvas if orientation == 1 else canvas.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(prepare(tmp_path / "turned.png")[-1].image.astype(int), boot, atol=1)


@pytest.mark.parametrize(
    "background, ink", [(255, 0), (200, 40), (120, 10), (120, 250), (0, 255), (30, 180)]
)
def test_the_background_may_have_any_gray(boot, canvas, background, ink):
    cover = np.asarray(canvas) / 255
    picture = np.round(background * (1 - cover) + ink * cover).astype(np.uint8)
    assert predict(picture).class_name == "Ankle boot"
    assert np.abs(prepare(picture)[-1].image.astype(int) - boot).mean() < 4


def test_a_28_by_28_picture_keeps_its_frame(data):
    image = data.test.images[7, ..., 0].copy()
    image[:, :5] = image[:, -5:] = 0
    np.testing.assert_array_equal(prepare(image)[-1].image, image)
    assert len(prepare(image)) == 3 and len(prepare(np.pad(image, 2))) == 5


def test_dust_does_not_widen_the_box(boot, canvas):
    dusty = np.asarray(canvas).copy()
    dusty[3, 3] = dusty[-4, -9] = 255
    np.testing.assert_allclose(prepare(dusty)[-1].image.astype(int), boot, atol=1)


def test_the_picture_that_was_given_is_not_changed(canvas):
    array = np.asarray(canvas).copy()
    before, size = array.copy(), canvas.size
    prepare(array), prepare(canvas)
    np.testing.assert_array_equal(array, before)
    assert canvas.size == size


# ---------------------------------------------------------------- what cannot be used


def content(picture, kind="PNG"):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def refused(path, words):
    with pytest.raises(PredictError, match=words) as caught:
        predict(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_pictures_are_one_sentence(canvas, kind, tmp_path):
    whole = content(canvas, kind)
    for share in (0.0, 0.01, 0.1, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "cut", "broken|not a picture")


def test_random_damage_gives_an_answer_or_one_sentence(canvas, tmp_path):
    random, outcomes = np.random.default_rng(0), set()
    for kind in ("PNG", "JPEG", "TIFF", "GIF"):
        whole = np.frombuffer(content(canvas, kind), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[random.integers(0, len(whole), 6)] = random.integers(0, 256, 6)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                image = prepare(tmp_path / "damaged")[-1].image
            except PredictError as error:
                assert "damaged" in str(error) and "\n" not in str(error) and len(str(error)) < 500
                outcomes.add("refused")
            else:
                assert image.dtype == np.uint8 and image.shape == (28, 28)
                outcomes.add("read")
    # else the damage is too small, or too large, to tell anything
    assert outcomes == {"refused", "read"}


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, tmp_path, monkeypatch):
    def chunk(kind, body):
        return (
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    header = chunk(b"IHDR", side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    refused(tmp_path / "bomb.png", "50,000,000")


def test_other_things_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "script.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    )
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (40, 40), 200).save(tmp_path / "plain.png")
    Image.new("L", (5_000, 8)).save(tmp_path / "strip.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("text.png", "not a picture"),
        ("script.eps", "not a picture"),
        ("dot.png", "1 × 1 pixels"),
        ("plain.png", "nothing that differs"),
        ("strip.png", "at least 8"),
        ("pipe.png", "is not a file"),
        ("none.png", "there is no file"),
        ("empty", "is not a file"),
    ]:
        refused(tmp_path / name, words)
    with pytest.raises(PredictError, match="holds no images"):
        predict_files(tmp_path / "empty")
    with pytest.raises(PredictError, match="no images were given"):
        predict_files([])
    with pytest.raises(PredictError, match="and 1 more"):
        predict_files([tmp_path / "none.png", tmp_path / "empty"])


def test_other_networks_are_refused(boot):
    import keras

    def network(shape, classes, activation="softmax"):
        layers = [
            keras.layers.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation=activation),
        ]
        return keras.Sequential(layers, name="other")

    for model, words in [
        (network((32, 32, 3), 10), r"takes \(32, 32, 3\)"),
        (network((28, 28, 1), 100), r"\(100,\)"),
        (network((28, 28, 1), 10), "cannot be told .* state them with pixels="),
        (keras.Sequential(), "is not a network|no fixed shapes"),
        (3, "int is not a network"),
        ("lenet", "no network .lenet. comes with"),
    ]:
        with pytest.raises((PredictError), match=words):
            predict(boot, model)
    untrained = predict(boot, network((28, 28, 1), 10), pixels="0..1")
    assert untrained.novelty == predict(boot).novelty


# ---------------------------------------------------------------- answers


def test_good_files_are_answered_beside_bad_ones(canvas, tmp_path):
    canvas.save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no")
    found = predict_files([tmp_path, tmp_path / "b.png"])
    assert [answer.class_name for answer in found] == ["Ankle boot"] * 2 and len(found.errors) == 1
    text, values = found.to_text(), json.loads(json.dumps(found.to_dict()))
    assert text.count("Ankle boot") == 2 and text.splitlines()[-1].startswith("not used: ")
    assert [*values["predictions"][0]["probabilities"]] == [*CLASS_NAMES] and values[
        "errors"
    ] == list(found.errors)
    assert list(found.to_frame()["class"]) == ["Ankle boot"] * 2


def test_false_alarms_and_what_is_caught(data):
    novelty = load_novelty()
    rate = (novelty.p_value(novelty.score(data.test.images)) <= FALSE_ALARMS).mean()
    assert 0.006 < rate < 0.014
    noise = np.random.default_rng(1).integers(0, 256, (200, 28, 28))
    assert (novelty.p_value(novelty.score(noise)) <= FALSE_ALARMS).all()
    assert (
        novelty.p_value(novelty.score(255 - data.test.images[:200])) <= FALSE_ALARMS
    ).mean() > 0.95
    assert predict(noise[0].astype(np.uint8)).warning and not predict(data.test.images[0]).warning


# ---------------------------------------------------------------- the shipped files


def test_the_shipped_network_is_small_and_good(data):
    folder = pretrained_room._pretrained()
    assert (
        sum((folder / name).stat().st_size for name in ("model.npz", "model.json", "novelty.npz"))
        < 1_000_000
    )
    for name in pretrained_names():  # each of the others is held to the same
        assert (
            sum((folder / f"{name}.{kind}").stat().st_size for kind in ("npz", "json")) < 1_000_000
        )
    details = shipped_details()
    assert (
        details["history"]
        and details["record"]["data"]["train_sha256"]
        and "test split was not used" in details["note"]
    )
    found = predict_room.as_classifier(load_pretrained())(data.test.images[:2_000]).argmax(axis=1)
    assert (found == data.test.labels[:2_000]).mean() > 0.93


@pytest.mark.parametrize("name", ["model.npz", "model.json", "novelty.npz"])
def test_damaged_shipped_files_are_noticed(name, tmp_path):
    for path in pretrained_room._pretrained().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    for load in (load_pretrained, load_novelty, shipped_details):
        with pytest.raises(PredictError, match="install the package again"):
            load(folder=tmp_path)


def test_importing_it_is_light():
    code = (
        "import sys, fashion_nb.prediction.predict; print(*sorted({'keras', 'tensorflow', 'scipy',"
        " 'matplotlib', 'PIL', 'pandas'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


def test_it_works_on_jax_without_data(canvas, tmp_path):
    pytest.importorskip("jax")
    canvas.save(tmp_path / "boot.png")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'tensorflow': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fashion_nb.prediction.files import predict_files\n"
        f"print(predict_files({str(tmp_path / 'boot.png')!r}).to_text())"
    )
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "FASHION_NB_DATA": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "Ankle boot" in done.stdout, done.stderr[-2_000:]
