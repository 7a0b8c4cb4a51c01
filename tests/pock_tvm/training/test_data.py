"""Data on disk: images, arrays, and what is refused."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pock_tvm.errors import DataError
from pock_tvm.training.beside import Preprocessing
from pock_tvm.training.data import (
    ArrayFile,
    Augmentation,
    ImageFolder,
    evaluation_batches,
    open_data,
    training_batches,
)

SHAPE = (2, 3, 8, 8)


@pytest.fixture
def folder(tmp_path):
    """Two classes: three dark images, two bright ones, all 12 x 10."""
    for label, level, count in (("dark", 40, 3), ("bright", 200, 2)):
        (tmp_path / label).mkdir()
        for number in range(count):
            pixels = np.full((10, 12, 3), level, np.uint8)
            pixels[:, :6, 0] += 20
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    return tmp_path


def test_a_folder_per_class(folder) -> None:
    data = ImageFolder(folder, "x", SHAPE, Preprocessing((0.5,) * 3, (0.25,) * 3))
    assert data.classes == ["bright", "dark"]
    x, y = data.read(np.array([0, 4]), None)
    assert x["x"].shape == SHAPE
    assert x["x"].dtype == np.float32
    assert y.tolist() == [0, 1]
    assert x["x"][0, 2].mean() == pytest.approx((200 / 255 - 0.5) / 0.25, abs=1e-4)
    assert x["x"][0, 0, 0, 0] > x["x"][0, 0, 0, -1]


def test_grey_images(folder) -> None:
    x, _ = ImageFolder(folder, "x", (2, 1, 8, 8), Preprocessing((0.5,), (0.5,))).read(np.array([0]), None)
    assert x["x"].shape == (1, 1, 8, 8)


def test_augmentation_is_for_training_alone(folder) -> None:
    data = ImageFolder(folder, "x", SHAPE, Preprocessing(), Augmentation(flip=True, crop=True))
    plain = data.read(np.arange(5), None)[0]["x"]
    np.testing.assert_array_equal(plain, data.read(np.arange(5), None)[0]["x"])
    seen = [data.read(np.arange(5), np.random.default_rng(seed))[0]["x"] for seed in range(4)]
    assert any(not np.array_equal(plain, images) for images in seen)
    flipped = [images[:, 0, 0, 0] < images[:, 0, 0, -1] for images in seen]
    assert np.any(flipped)
    assert not np.all(flipped)


def test_what_is_kept_decoded_changes_nothing(folder, monkeypatch) -> None:
    def images(data: ImageFolder, seed: int) -> np.ndarray:
        return data.read(np.arange(5), np.random.default_rng(seed))[0]["x"]

    kept, read = (ImageFolder(folder, "x", SHAPE, Preprocessing(), Augmentation(flip=True)) for _ in range(2))
    first = [images(kept, seed) for seed in range(3)]
    assert all(np.array_equal(images(kept, seed), first[seed]) for seed in range(3))
    monkeypatch.setattr("pock_tvm.training.data.CACHE_BYTES", 0)
    assert all(np.array_equal(images(read, seed), first[seed]) for seed in range(3))


def test_batches(folder) -> None:
    data = ImageFolder(folder, "x", SHAPE, Preprocessing())
    epochs = [[y.tolist() for _, y in training_batches(data, 2, np.random.default_rng(seed))] for seed in (0, 0, 1)]
    assert [len(labels) for labels in epochs[0]] == [2, 2]
    assert epochs[0] == epochs[1] != epochs[2]
    assert [len(y) for _, y in evaluation_batches(data, 2)] == [2, 2, 1]


def test_arrays(tmp_path) -> None:
    arrays = {"ids": np.arange(12).reshape(6, 2), "mask": np.ones((6, 2)), "y": np.arange(6)}
    np.savez(tmp_path / "data.npz", **arrays)
    data = open_data(tmp_path / "data.npz", [{"name": "ids"}, {"name": "mask"}], Preprocessing())
    assert isinstance(data, ArrayFile)
    x, y = data.read(np.array([1, 5]), None)
    assert x["ids"].tolist() == [[2, 3], [10, 11]]
    assert y.tolist() == [1, 5]


def test_preprocessing_beside_a_model(tmp_path) -> None:
    assert Preprocessing.beside(tmp_path / "net.pt2") is None
    (tmp_path / "net.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}))
    assert Preprocessing.beside(tmp_path / "net.pt2") == Preprocessing((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (tmp_path / "net.json").write_text('{"mean": 3}')
    with pytest.raises(DataError, match="should hold mean and std"):
        Preprocessing.beside(tmp_path / "net.pt2")


def test_unusable_data_is_refused(folder, tmp_path) -> None:
    images = {"name": "x", "shape": SHAPE, "dtype": "float32"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "some").mkdir(parents=True)
    (tmp_path / "half" / "none").mkdir()
    (tmp_path / "split" / "train" / "some").mkdir(parents=True)
    (tmp_path / "text.csv").write_text("1,2,3")
    Image.new("RGB", (4, 4)).save(tmp_path / "half" / "some" / "a.png")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "0.jpg").write_bytes(b"no image")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    np.savez(tmp_path / "nameless.npz", z=np.zeros((3, 2)), y=np.zeros(3))
    cases = [
        ("missing", [images], "there is no folder"),
        ("empty", [images], "holds no folders"),
        ("half", [images], "class 'none' holds no images$"),
        ("split", [images], "class 'train' holds no images, but folders: is '.*split/train' the data set"),
        ("text.csv", [images], "neither a folder of images nor an .npz file"),
        ("half", [images | {"shape": (2, 7)}], "takes no images"),
        ("half", [images, images], r"as an .npz file"),
        ("bad.npz", [images], "cannot be read"),
        ("short.npz", [images], "differ in length"),
        ("nameless.npz", [images], "no array 'x'"),
    ]
    for name, inputs, complaint in cases:
        with pytest.raises(DataError, match=complaint):
            open_data(tmp_path / name, inputs, Preprocessing())
    with pytest.raises(DataError, match="cannot be read as an image"):
        open_data(tmp_path / "broken", [images], Preprocessing()).read(np.array([0]), None)


def png(width: int, height: int) -> bytes:
    """A picture of zeros, whatever its size: a file of some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_hostile_pictures_are_refused_before_they_take_memory(folder) -> None:
    for name, content in {
        "many": png(1, 8)[:16] + struct.pack(">LL", 40_000, 40_000) + png(1, 8)[24:],
        "long": png(1, 2_000_000),
        "cut": png(9, 9)[:-30],
        "other": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "empty": b"",
    }.items():
        (folder / "bright" / "0.png").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError, match="cannot be read as an image") as caught:
            ImageFolder(folder, "x", (2, 3, 224, 224), Preprocessing()).read(np.array([0]), None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert peak < 2**24, name
    (folder / "bright" / "0.png").unlink()
    os.mkfifo(folder / "bright" / "0.png")
    with pytest.raises(DataError, match="no regular file"):
        ImageFolder(folder, "x", SHAPE, Preprocessing()).read(np.array([0]), None)


def test_hostile_arrays_are_refused_before_they_take_memory(tmp_path) -> None:
    def member(shape: str, data: bytes = b"", dtype: str = "<f4") -> bytes:
        head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data

    bomb = member(f"({2**24},)", bytes(2**26))
    hostile = {
        "large": {"x.npy": member("(1000000000000,)"), "y.npy": member("(1,)", b"1234")},
        "bomb": {f"{name}.npy": bomb for name in ("x", "y", "a", "b", "c", "d")},
        "objects": {"x.npy": member("(1,)", b"cos\nsystem\n(S'true'\ntR.", "|O"), "y.npy": member("(1,)", b"1234")},
        "none": {"x.npy": b"", "y.npy": b""},
        "head": {"x.npy": member("(" * 99), "y.npy": b""},
    }
    for name, members in hostile.items():
        with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in members.items():
                archive.writestr(each, data)
        tracemalloc.start()
        with pytest.raises(DataError, match="cannot be read as an .npz file") as caught:
            ArrayFile(tmp_path / "data.npz", ["x"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert peak < 2**24, name
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((4, 1000), "float32"), y=np.zeros(4), other=np.zeros(9))
    assert set(ArrayFile(tmp_path / "data.npz", ["x"]).arrays) == {"x", "y"}
