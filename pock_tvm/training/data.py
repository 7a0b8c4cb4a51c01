"""Data on disk: a folder of images per class, or an ``.npz`` file of arrays."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..device.checksums import crc32
from ..device.losses import Loss
from ..device.reading import MIB, open_archive, read_file, reading
from ..errors import DataError
from .beside import Preprocessing

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}
CROP_MARGIN = 1.15
"""Size of an image before random cropping, relative to the network's input."""
COUNTING_BATCH = 1024
"""Samples that are read at a time to count rows of embeddings."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of images that are decoded: others call programs, or are rarely tested."""
IMAGE_BYTES = 256 * MIB
"""Most bytes of an image file."""
PIXELS = 52_000_000
"""Most pixels of an image as stored, and as scaled to the network's size: a camera's 50 megapixels, 156 MB of RGB."""
ARRAY_BYTES = 2**40
"""Most bytes of an ``.npz`` file."""
EXPANSION, FREE_BYTES = 20, 256 * MIB
"""How many times larger than the file the arrays of a compressed ``.npz`` may be, and what they may take anyway."""
CACHE_BYTES = 256 * 2**20
"""Bytes of decoded images that an :class:`ImageFolder` keeps for later epochs."""

Batch = tuple[dict[str, np.ndarray], "np.ndarray | None"]
"""Inputs by name, and the target; no target for a network that computes its own loss."""


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images."""

    flip: bool = False
    crop: bool = False


class DataSet(Protocol):
    """Samples that can be read in batches."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        """Read the samples at some positions; augment them if ``rng`` is given."""

    def content(self, index: int) -> bytes:
        """Return the bytes that identify a sample."""

    @property
    def targets(self) -> np.ndarray:
        """Labels or targets of all samples."""

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in the order of their numbers, where the data has names."""

    @property
    def preprocessing(self) -> dict[str, list[float]] | None:
        """Preprocessing of images in the form of a manifest; None for other data."""

    def identity(self) -> dict[str, Any]:
        """Return plain values that are equal for data that gives the same batches."""


class ImageFolder:
    """A folder with one folder of images per class.

    Classes are numbered as ``classes`` lists them, otherwise in the order of their names. If they are listed, each
    needs its folder, which may be empty. Without ``has_target`` batches have no labels: the network computes its own
    loss.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str,
        shape: Sequence[int],
        preprocessing: Preprocessing,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - immutable
        *,
        has_target: bool = True,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = Path(folder)
        if not root.exists():
            raise DataError(f"there is no folder '{folder}'")
        if not root.is_dir():
            raise DataError(f"'{folder}' is neither a folder of images nor an .npz file")
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise DataError(
                f"input '{name}' of shape {tuple(shape)} takes no images: images are [batch, 1 or 3, height, width]"
            )
        with reading(DataError, f"'{folder}' cannot be read as a folder of images: {{}}"):
            self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
            if classes is not None:
                check_classes("the program", sorted(classes), f"'{folder}'", self.classes)
                self.classes = list(classes)
            files = {label: sorted(_images(root / label)) for label in self.classes}
        empty = [label for label, found in files.items() if not found]
        if len(empty) == len(self.classes) or (empty and classes is None):
            raise DataError(f"'{folder}' is no data set of one folder per class: {_without_images(root, empty)}")
        self.root, self.files = root, [file for label in self.classes for file in files[label]]
        self.labels = np.array([number for number, label in enumerate(self.classes) for _ in files[label]])
        self.name, (_, self.channels, self.height, self.width) = name, shape
        self.augmentation, self.has_target, self.preprocessing = augmentation, has_target, preprocessing.to_json()
        mean, std = (
            np.array((list(v) * 3)[: self.channels], np.float32) for v in (preprocessing.mean, preprocessing.std)
        )
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        """Read images as float32 [n, channels, height, width], and labels as int64 [n]."""
        images = np.stack([self._image(int(index), rng) for index in indices])
        return {self.name: (images - self.mean) / self.std}, self.labels[indices] if self.has_target else None

    @property
    def targets(self) -> np.ndarray:
        """Class numbers of all images."""
        return self.labels

    def content(self, index: int) -> bytes:
        """Return the bytes of an image file."""
        with reading(DataError, f"'{self.files[index]}' cannot be read as an image: {{}}"):
            return read_file(self.files[index], IMAGE_BYTES)

    def identity(self) -> dict[str, Any]:
        """Return a checksum of the files' names and sizes, and what becomes of the images."""
        files = [f"{file.relative_to(self.root)} {file.stat().st_size}" for file in self.files]
        made = asdict(self.augmentation) | self.preprocessing
        return {"samples": len(files), "data_checksum": crc32("\n".join(files).encode()), **made}

    def _image(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        if rng is not None and self.augmentation.crop:
            pixels = self._pixels(self.files[index], rng)
        else:
            pixels = self._decoded[index] if index in self._decoded else self._pixels(self.files[index], None)
            if index not in self._decoded and (len(self._decoded) + 1) * pixels.nbytes <= CACHE_BYTES:
                self._decoded[index] = pixels
        if rng is not None and self.augmentation.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255

    def _pixels(self, file: Path, rng: np.random.Generator | None) -> np.ndarray:
        """Decode an image at the network's size, as uint8 [height, width, channels]."""
        with (
            reading(DataError, f"'{file}' cannot be read as an image: {{}}"),
            Image.open(io.BytesIO(read_file(file, IMAGE_BYTES)), formats=FORMATS) as opened,
        ):
            self._check_size(opened)
            image = opened.convert("RGB" if self.channels == 3 else "L")
        return np.asarray(self._sized(image, rng)).reshape(self.height, self.width, self.channels)

    def _check_size(self, image: Image.Image) -> None:
        """Refuse an image before it is decoded if it, or what it is scaled to, takes too much memory."""
        scale = max(self.width / image.width, self.height / image.height) * CROP_MARGIN
        count, most = image.width * image.height, max(PIXELS, 8 * self.width * self.height)
        if max(count, count * scale**2) > most:
            raise ValueError(
                f"{image.width} x {image.height} pixels are too many, or too long and thin: make it smaller"
            )

    def _sized(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        """Resize and crop an image to the network's size: its centre, or with ``rng`` a random part."""
        if image.size == (self.width, self.height):
            return image
        scale = max(self.width / image.width, self.height / image.height) * (CROP_MARGIN if rng is not None else 1)
        size = (max(self.width, round(image.width * scale)), max(self.height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        room = (size[0] - self.width, size[1] - self.height)
        left, top = (int(rng.integers(0, r + 1)) if rng is not None else r // 2 for r in room)
        return image.crop((left, top, left + self.width, top + self.height))


def _without_images(root: Path, empty: Sequence[str]) -> str:
    """Say which folder holds no images: of a class, or of a split, which holds the folders of classes itself."""
    if not empty:
        return "it holds no folders"
    holds_folders = any(entry.is_dir() for entry in (root / empty[0]).iterdir())
    hint = f", but folders: is '{root / empty[0]}' the data set?" if holds_folders else ""
    return f"the folder of class '{empty[0]}' holds no images{hint}"


class ArrayFile:
    """An ``.npz`` file with one array for each of the network's inputs, by name, and the targets as ``y``.

    Without ``has_target`` it needs no ``y``: the network computes its own loss.
    """

    classes: list[str] | None = None
    preprocessing: dict[str, list[float]] | None = None

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str], *, has_target: bool = True) -> None:
        needed = [*names, "y"] if has_target else list(names)
        with (
            reading(DataError, f"'{path}' cannot be read as an .npz file: {{}}", f"there is no file '{path}'"),
            open_archive(path, ARRAY_BYTES, expansion=EXPANSION, free=FREE_BYTES) as archive,
        ):
            present = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [name for name in needed if name not in present]
            if missing:
                raise DataError(f"'{path}' holds no array '{missing[0]}': it needs {', '.join(needed)}")
            self.arrays = {name: _array(archive, f"{name}.npy") for name in needed}
        flat = [name for name in needed if not self.arrays[name].ndim]
        if flat:
            raise DataError(f"the array '{flat[0]}' of '{path}' is a single number: it has one row a sample")
        lengths = {name: len(self.arrays[name]) for name in needed}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the arrays of '{path}' differ in length: {lengths}")
        self.names = list(names)
        self.has_target = has_target

    def __len__(self) -> int:
        return len(self.arrays[self.names[0]])

    def read(self, indices: np.ndarray, rng: np.random.Generator | None) -> Batch:
        """Read the rows at some positions."""
        y = self.arrays["y"][indices] if self.has_target else None
        return {name: self.arrays[name][indices] for name in self.names}, y

    @property
    def targets(self) -> np.ndarray:
        """The array ``y``; empty without ``has_target``."""
        return self.arrays["y"] if self.has_target else np.zeros(0)

    def content(self, index: int) -> bytes:
        """Return the bytes of a sample's inputs."""
        return b"".join(self.arrays[name][index].tobytes() for name in self.names)

    def identity(self) -> dict[str, Any]:
        """Return a checksum of the arrays."""
        names = [*self.names, "y"] if self.has_target else self.names
        checksums = [crc32(self.arrays[name]) for name in names]
        return {"samples": len(self), "data_checksum": crc32(" ".join(checksums).encode())}


def _images(folder: Path) -> list[Path]:
    """List the image files of a class."""
    return [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of numbers of an ``.npz`` file; its size is checked before it is allocated."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        if math.prod(shape) * dtype.itemsize > archive.getinfo(name).file_size:
            raise ValueError(f"{name} is cut off")
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def open_data(
    path: str | os.PathLike[str],
    inputs: Sequence[Mapping[str, Any]],
    preprocessing: Preprocessing,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 - immutable
    *,
    has_target: bool = True,
    classes: Sequence[str] | None = None,
) -> ImageFolder | ArrayFile:
    """Open the data set at a path; ``inputs`` and ``has_target`` are those of a program's manifest and loss.

    ``classes`` are the names of a folder's classes, where they are known.
    """
    if Path(path).suffix == ".npz":
        return ArrayFile(path, [spec["name"] for spec in inputs], has_target=has_target)
    if len(inputs) != 1:
        names = ", ".join(spec["name"] for spec in inputs)
        raise DataError(f"the network has the inputs {names}; give its data as an .npz file, not as a folder of images")
    name, shape = inputs[0]["name"], inputs[0]["shape"]
    return ImageFolder(path, name, shape, preprocessing, augmentation, has_target=has_target, classes=classes)


def open_samples(
    manifest: Mapping[str, Any],
    path: str | os.PathLike[str],
    preprocessing: Preprocessing,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 - immutable
    *,
    classes: Sequence[str] | None = None,
) -> ImageFolder | ArrayFile:
    """Open the data set at a path for a program.

    ``classes`` are the names of its classes: those of a checkpoint or of the training data, otherwise the manifest's.

    Raises
    ------
    DataError
        The data cannot be read, a class's folder is missing or unknown, or there are more or fewer folders than the
        network tells classes apart.
    """
    loss = Loss(**manifest["loss"])
    known = classes or manifest.get("classes")
    data = open_data(path, manifest["inputs"], preprocessing, augmentation, has_target=loss.has_target, classes=known)
    if loss.kind == "cross_entropy" and data.classes is not None:
        count = manifest["outputs"][loss.output]["shape"][1]
        if count != len(data.classes):
            raise DataError(
                f"the network tells {count} classes apart, and '{path}' has {len(data.classes)} folders "
                f"({', '.join(data.classes[:4])}{', …' if len(data.classes) > 4 else ''}): make one for each class. If "
                'the file beside the model (net.json) lists them as "classes" when it is compiled, folders may be empty'
            )
    return data


def check_classes(one: str, known: Sequence[str] | None, other: str, found: Sequence[str] | None) -> None:
    """Refuse data of other classes than those that are known; None, for data without names, fits any.

    Raises
    ------
    DataError
        It names a class that is missing, or that is no class, and ``one`` and ``other``, who say so.
    """
    if known is None or found is None or list(known) == list(found):
        return
    missing = [name for name in known if name not in found]
    if missing:
        raise DataError(
            f"{other} has no class '{missing[0]}', which {one} has ({len(missing)} missing): make its folder, which "
            "may be empty, or name the folders alike"
        )
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(f"{other} has a class '{unknown[0]}', which {one} does not have ({len(unknown)} unknown)")
    raise DataError(f"{one} and {other} number the same classes differently: name them in one order")


def digests(data: DataSet) -> list[bytes]:
    """Compute a digest of each sample, without its label."""
    return [hashlib.sha256(data.content(index)).digest() for index in range(len(data))]


def rows_read(look_ups: Mapping[str, str], data: DataSet) -> dict[str, list[int]]:
    """List the rows of each embedding that samples read, most frequent first; ``look_ups`` maps embeddings to the
    inputs that are looked up in them."""
    counts: dict[str, Counter[int]] = {by: Counter() for by in look_ups.values()}
    for inputs, _ in evaluation_batches(data, COUNTING_BATCH) if counts else ():
        for name, count in counts.items():
            rows, times = np.unique(inputs[name], return_counts=True)
            count.update(dict(zip(rows.tolist(), times.tolist(), strict=True)))
    return {name: [row for row, _ in counts[by].most_common()] for name, by in look_ups.items()}


def training_batches(data: DataSet, batch: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the batches of one epoch in random order; an incomplete last batch is dropped."""
    order = rng.permutation(len(data))
    for start in range(0, len(order) - batch + 1, batch):
        yield data.read(order[start : start + batch], rng)


def shuffled_batches(data: DataSet, batch: int) -> Iterator[Batch]:
    """Yield every sample once, in an order that is random but the same each time; the last batch may be smaller."""
    order = np.random.default_rng(0).permutation(len(data))
    for start in range(0, len(data), batch):
        yield data.read(order[start : start + batch], None)


def evaluation_batches(data: DataSet, batch: int) -> Iterator[Batch]:
    """Yield every sample once, in order; the last batch may be smaller."""
    for start in range(0, len(data), batch):
        yield data.read(np.arange(start, min(start + batch, len(data))), None)
