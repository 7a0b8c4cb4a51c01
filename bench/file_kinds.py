"""A small file of each kind that is read here, and what reads it (``bench/mutations.py``)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console


def make_originals(folder: Path) -> None:
    """Write a small file of each kind."""
    import torch
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from PIL import Image

    import pock_tvm as pock
    from pock_tvm.choosing.candidates import Candidate
    from pock_tvm.choosing.costs import Cost
    from pock_tvm.choosing.runs import Run
    from pock_tvm.compiler.kernel_cache import KernelCache
    from pock_tvm.device.container import sign_container

    torch.manual_seed(0)
    layers = torch.nn
    model = layers.Sequential(
        layers.Conv2d(3, 8, 3, padding=1), layers.ReLU(), layers.Flatten(), layers.Linear(8 * 64, 5)
    ).eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(model, (torch.randn(4, 3, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(exported, folder / "pt2.pt2")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (torch.randn(4, 3, 8, 8),), folder / "onnx.onnx", dynamo=False)
    scheme = pock.Scheme({"*.bias": "full", "3.weight": 0.5})
    program = pock.compile(exported, batch=4, scheme=scheme, optimizer=pock.SGD(momentum=0.9), check=False)
    program.save(folder / "program.pock")
    old = Path(__file__).resolve().parents[1] / "tests" / "data" / "format-1.pock"
    (folder / "old program.pock").write_bytes(old.read_bytes())
    program.save(folder / "signed program.pock", slim=True)
    private = Ed25519PrivateKey.generate()
    (folder / "key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "key.pub").write_bytes(private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    sign_container(folder / "signed program.pock", folder / "key")
    trainer = pock.Trainer(program)
    trainer.step(*batch_of(trainer), lr=0.1)
    trainer.save(folder / "checkpoint.ckpt")
    scheme.save(folder / "scheme.json")
    candidate = Candidate(3, "3.weight", 0.5)
    task = pock.Task("net.pt2", "train", "val")
    contributions = pock.Contributions(
        task, {"3.weight": {"shape": [5, 512], "values": "0" * 16}}, "0" * 64, [Run(candidate, 1.0, 0, 90.0, 0.3)],
        {candidate: Cost(1e6, 1e5, {"conv": [1.0, 2.0, 3.0]}, 10.0, 20.0)}, {candidate: 0.5}, finished=True,
    )  # fmt: skip
    contributions.save(folder / "contributions.json")
    record = {"kind": "conv", "flops": 1e6, "bytes": 1e5, "ms": 0.5}
    (folder / "profile.json").write_text(json.dumps([record] * 5))
    (folder / "preprocessing.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "npz.npz", x=rng.standard_normal((9, 3, 8, 8)).astype("float32"), y=np.arange(9) % 5, other=np.eye(3)
    )
    pixels = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    for suffix in SUFFIXES:
        pixels.save(folder / f"image {suffix}.{suffix}")
    os.environ["POCK_CACHE"] = str(folder / "cache")
    KernelCache(_host()).put(bytes(rng.integers(0, 255, 5000, dtype=np.uint8)), _kernel())
    (cached,) = (folder / "cache").glob("kernels/*/*.kernel")
    (folder / "cache.kernel").write_bytes(cached.read_bytes())


SUFFIXES = ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm")


def _host() -> Any:
    from pock_tvm.compiler.targets import resolve_target

    return resolve_target("host")


def _kernel() -> Any:
    from tvm import te

    from pock_tvm.compiler.kernel_cache import Kernel

    x = te.placeholder((8,), "float32", "x")
    func = te.create_prim_func([x, te.compute((8,), lambda i: te.exp(x[i]), "y")])
    return Kernel(func.with_attr("global_symbol", "exp"))


def batch_of(trainer: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a trainer's program."""
    from pock_tvm.device.profile import example

    return example(trainer.program)


def _read_program(path: Path, signature: Path | None = None) -> Any:
    import pock_tvm as pock
    from pock_tvm.reports.tables import layer_table, memory_table, summary

    program = pock.Program.load(path, signature=signature)
    console = Console(file=io.StringIO())
    console.print(summary(program), markup=False)
    console.print(layer_table(program), memory_table(program))
    trainer = pock.Trainer(program, threads=1)
    return [trainer.step(*batch_of(trainer), lr=0.1) for _ in range(2)]


def _read_signed(path: Path) -> Any:
    return _read_program(path, path.parent / "originals" / "key.pub")


def _read_checkpoint(path: Path) -> Any:
    import pock_tvm as pock

    trainer = pock.Trainer(path.parent / "originals" / "program.pock", threads=1)
    trainer.restore(path)
    return trainer.step(*batch_of(trainer), lr=0.1)


def _read_model(path: Path) -> Any:
    from pock_tvm.frontend import load_model

    model = load_model(path, any_shape=True)
    return [zlib.crc32(array.tobytes()) for array in model.weights.values()]


def _read_scheme(path: Path) -> Any:
    import pock_tvm as pock

    return pock.Scheme.load(path).rules


def _read_contributions(path: Path) -> Any:
    import pock_tvm as pock

    return repr(pock.Contributions.load(path))


def _read_profile(path: Path) -> Any:
    from pock_tvm.cli.choosing import _records

    return _records(path)


def _read_preprocessing(path: Path) -> Any:
    from pock_tvm.training.beside import Preprocessing

    return repr(Preprocessing.beside(path))


def _read_arrays(path: Path) -> Any:
    from pock_tvm.training.data import ArrayFile

    return [zlib.crc32(array.tobytes()) for array in ArrayFile(path, ["x"]).arrays.values()]


def _read_image(path: Path) -> Any:
    from pock_tvm.training.beside import Preprocessing
    from pock_tvm.training.data import ImageFolder

    folder = path.parent / "images" / "class"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / path.name).write_bytes(path.read_bytes())
    images, _ = ImageFolder(folder.parent, "x", (1, 3, 224, 224), Preprocessing()).read(np.array([0]), None)
    return zlib.crc32(images["x"].tobytes())


def _read_cache(path: Path) -> Any:
    from pock_tvm.compiler.kernel_cache import KernelCache
    from pock_tvm.errors import PockError

    os.environ["POCK_CACHE"] = str(path.parent / "cache")
    cache = KernelCache(_host())
    assert cache.folder is not None
    cache.folder.mkdir(parents=True, exist_ok=True)
    (cache.folder / "exp.kernel").write_bytes(path.read_bytes())
    found = cache.get(_kernel())
    if found is None:
        raise PockError("built again")
    return zlib.crc32(found)


READERS: dict[str, Callable[[Path], Any]] = {
    "program": _read_program,
    "old program": _read_program,
    "signed program": _read_signed,
    "checkpoint": _read_checkpoint,
    "pt2": _read_model,
    "onnx": _read_model,
    "scheme": _read_scheme,
    "contributions": _read_contributions,
    "profile": _read_profile,
    "preprocessing": _read_preprocessing,
    "npz": _read_arrays,
    **{f"image {suffix}": _read_image for suffix in SUFFIXES},
    "cache": _read_cache,
}
SHARE = {"program": 4, "old program": 2, "signed program": 2, "pt2": 2, "npz": 2, "onnx": 2, "contributions": 2}
"""How many cases a kind gets of each round; one by default."""
