"""Mutates files of every kind and reads them: each is right or refused in one line, without crash, hang or much memory.

    python bench/mutations.py [--count 10000] [--only program] [--json out.json]

Every case is numbered, and the same in every run: flipped bits, cut, spliced and zeroed files, bombs, deep nesting,
members rewritten under fitting checksums. A library under a fitting checksum is code: it is tried only where a
signature is required. Cases run in processes of their own; a kind's readers stand in ``READERS``.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

MEMORY = 512 * 2**20
"""Most bytes that reading a file may add to a process."""
SECONDS = 180
"""Longest time that a case may take, with whatever its reader imports, on a busy machine."""
HEADROOM = 6 * 2**30
"""Address space of a worker beyond what it starts with: enough to measure, and too little to hurt the machine."""
BATCH = 250
"""Cases that a worker does before another takes its place."""
CHECKED = ("program", "old program", "signed program", "pt2", "npz", "cache", "checkpoint")
"""Kinds whose files hold checksums: one that was not rewritten on purpose is read as it was, or refused."""


# ---- originals -------------------------------------------------------------------------------------------------------


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


# ---- readers: what a file says, as a value that can be compared ------------------------------------------------------


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


# ---- mutations -------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut a file short."""
    return data[: rng.randrange(len(data))]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a part by zeros, or by 0xFF."""
    start = rng.randrange(len(data))
    count = rng.randint(1, 200)
    return data[:start] + bytes([rng.choice((0, 255))]) * len(data[start : start + count]) + data[start + count :]


def doubled(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part, or leave one out."""
    start, count = rng.randrange(len(data)), rng.randint(1, 300)
    return data[: start + count] + data[start:] if rng.random() < 0.5 else data[:start] + data[start + count :]


def spliced(data: bytes, rng: random.Random, originals: Path) -> bytes:
    """Put the beginning of one file before the end of another."""
    other = rng.choice(sorted(path for path in originals.iterdir() if path.is_file())).read_bytes()
    first, second = (data, other) if rng.random() < 0.5 else (other, data)
    return first[: rng.randrange(len(first))] + second[rng.randrange(len(second)) :]


ODD = (
    0, 1, -1, 2**31, 2**63, 10**30, -(2**40), 1e308, float("nan"), True, None, "", "x" * 1000, [], {}, [[]], "../../x",
    "torch.hub.load", "__import__('os').abort()", "Pow(10,10**9)", "float64", "copy",
)  # fmt: skip
"""Values that a field may not expect."""


def changed_json(value: Any, rng: random.Random) -> Any:
    """Change some entries of a JSON value: to odd values, to those of a neighbour; remove or repeat them."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        node, places = value, []
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            places.append((node, key))
            node = node[key]
            if rng.random() < 0.1:
                break
        if not places:
            continue
        parent, key = rng.choice(places[-3:])
        what = rng.random()
        if what < 0.15:
            del parent[key]
        elif what < 0.3 and isinstance(parent, list):
            parent.insert(key, parent[rng.randrange(len(parent))])
        elif what < 0.4:
            parent[key] = rng.choice(list(parent.values() if isinstance(parent, dict) else parent))
        elif what < 0.6 and isinstance(parent[key], int | float):
            parent[key] = parent[key] * rng.choice((2, 0.5, -1, 1000)) + rng.choice((0, 1, -1))
        else:
            parent[key] = rng.choice(ODD)
    return value


def bombs(rng: random.Random) -> bytes:
    """A text that is nested deeply, or has many values."""
    texts = (b"[" * 500_000, b'{"a":' * 100_000, b"[" + b"{}," * 1_000_000 + b"{}]", b"[" + b"0," * 5_000_000 + b"0]")
    return rng.choice(texts)


def bomb_archive(names: list[str], rng: random.Random) -> bytes:
    """A zip file whose members grow a thousandfold."""
    packed, method = io.BytesIO(), rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in names:
            archive.writestr(name, bytes(rng.choice((2**20, 2**25))))
    return packed.getvalue()


def rewritten_archive(data: bytes, rng: random.Random) -> bytes:
    """Change members of a zip file, under fitting CRCs."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    members[name] = _changed_member(name, members[name], rng)
    return _zipped(members)


def _changed_member(name: str, data: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json") and rng.random() < 0.8:
        return json.dumps(changed_json(json.loads(data), rng)).encode()
    if rng.random() < 0.05:
        return bombs(rng)
    return rng.choice((flipped, cut, zeroed, doubled))(data, rng) if data else b"\0"


def _zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def rechecked_program(path: Path, rng: random.Random, *, library: bool) -> bytes:
    """Change manifest, weights or constants of a program, under fitting checksums; or its library alone."""
    from pock_tvm.device.container import (
        CONSTANTS,
        KERNELS,
        LIBRARY,
        SIGNATURE,
        WEIGHTS,
        read_container,
        write_container,
    )
    from pock_tvm.device.program import FORMAT

    manifest, found = read_container(path)
    parts = {name: bytes(data) for name, data in found.items()}
    signature = b""
    if library:
        parts[LIBRARY] = flipped(parts[LIBRARY], rng)
        with zipfile.ZipFile(path) as archive:
            signature = archive.read(SIGNATURE)
    elif rng.random() < 0.7 or manifest["format"] != FORMAT:  # an old library has no word of its constants
        manifest = changed_json(manifest, rng)
    else:
        name = rng.choice([name for name in (WEIGHTS, CONSTANTS, KERNELS) if name in parts])
        parts[name] = _changed_tensors(parts[name], rng) if name != KERNELS else flipped(parts[name], rng)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "p.pock"
        write_container(target, manifest if isinstance(manifest, dict) else {"manifest": manifest}, parts)
        if signature:
            with zipfile.ZipFile(target, "a") as archive:
                archive.writestr(SIGNATURE, signature)
        return target.read_bytes()


def _changed_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or its bytes."""
    if rng.random() < 0.4:
        return rng.choice((flipped, cut, zeroed, doubled))(data, rng)
    count = int.from_bytes(data[:8], "little")
    head = json.dumps(changed_json(json.loads(data[8 : 8 + count]), rng)).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + count :]


def mutated(kind: str, path: Path, rng: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation, and the bytes of the mutated file."""
    data = path.read_bytes()
    choices = ["flipped", "cut", "zeroed", "doubled", "spliced"]
    if zipfile.is_zipfile(path):
        choices += ["rewritten", "rewritten", "bomb"]
    if "program" in kind:
        choices += ["rechecked library"] * 3 if kind == "signed program" else ["rechecked"] * 6
    if path.suffix == ".json":
        choices += ["changed", "changed", "changed", "bomb"]
    if kind == "checkpoint":
        choices += ["changed tensors", "changed tensors"]
    choice = rng.choice(choices)
    if choice == "spliced":
        return choice, spliced(data, rng, path.parent)
    if choice == "rewritten":
        return choice, rewritten_archive(data, rng)
    if choice == "bomb":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return choice, bomb_archive(archive.namelist()[:8], rng)
        return choice, bombs(rng)
    if choice.startswith("rechecked"):
        return choice, rechecked_program(path, rng, library=choice.endswith("library"))
    if choice == "changed":
        return choice, json.dumps(changed_json(json.loads(data), rng)).encode()
    if choice == "changed tensors":
        return choice, _changed_tensors(data, rng)
    return choice, {"flipped": flipped, "cut": cut, "zeroed": zeroed, "doubled": doubled}[choice](data, rng)


# ---- a worker: reads the numbers of cases, answers what became of them -----------------------------------------------


def work(folder: Path, originals: Path) -> None:
    """Read ``kind<tab>number`` lines, and print what became of each case as JSON."""
    warnings.simplefilter("ignore")
    from pock_tvm.errors import PockError

    (folder / "originals").symlink_to(originals)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    expected = {}
    limit = _status("VmSize") + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        kind, _, number = line.strip().partition("\t")
        (original,) = (path for path in originals.iterdir() if path.stem == kind and path.suffix not in ("", ".pub"))
        path = folder / f"case{original.suffix}"
        if kind not in expected:
            path.write_bytes(original.read_bytes())
            expected[kind] = READERS[kind](path)  # and whatever it imports takes its memory now
        mutation, data = mutated(kind, original, random.Random(f"{kind} {number}"))
        path.write_bytes(data)
        del data
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        before, note = _status("VmRSS"), ""
        try:
            found = READERS[kind](path)
            same = found == expected[kind]
            rewritten = mutation.startswith(("re", "changed"))
            outcome = "right" if same else "other" if rewritten or kind not in CHECKED else "wrong"
            if mutation == "rechecked library":
                outcome = "ran"
        except PockError as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else "many lines"
            note = str(error)
        except BaseException as error:
            outcome = "exception"
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"
        grown = _status("VmHWM") - before
        if grown > MEMORY:
            outcome, note = "memory", f"{grown >> 20} MB; {outcome}: {note}"
        answers.write(json.dumps([mutation, outcome, note[:300]]) + "\n")
        answers.flush()


def _status(name: str) -> int:
    """Bytes of an entry of this process's status."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1]) * 1024


# ---- the run ---------------------------------------------------------------------------------------------------------

GOOD = ("right", "other", "refused")
"""Outcomes that are no fault: read as it was; another file, well formed; refused in one line."""


@dataclass(frozen=True)
class Row:
    """Counts of the outcomes of one kind of file."""

    kind: str
    outcomes: dict[str, int]
    faults: list[str]
    """A line for each fault: number of the case, mutation, what happened."""


def run(count: int = 10_000, *, only: Collection[str] | None = None, workers: int = 2) -> list[Row]:
    """Run some number of cases over all kinds, and return a row for each kind."""
    shares = {kind: SHARE.get(kind, 1) for kind in READERS if not only or kind in only}
    cases = {kind: math.ceil(count * share / sum(shares.values())) for kind, share in shares.items()}
    with tempfile.TemporaryDirectory() as name:
        originals = Path(name) / "originals"
        originals.mkdir()
        with warnings.catch_warnings(action="ignore"):
            make_originals(originals)
        listed = [(kind, number) for kind, several in cases.items() for number in range(several)]
        random.Random(0).shuffle(listed)
        jobs = [listed[start : start + BATCH] for start in range(0, len(listed), BATCH)]
        with ThreadPoolExecutor(workers) as pool:
            batches = pool.map(lambda job: list(_answers(originals, job)), jobs)
            answers = [answer for batch in batches for answer in batch]
    rows = []
    for kind in cases:
        own = [rest for of, *rest in answers if of == kind]
        faults = [f"{kind} {number}, {what}: {found} {note}" for number, what, found, note in own if found not in GOOD]
        rows.append(Row(kind, dict(Counter(found for _, _, found, _ in own)), faults))
    return rows


def _answers(originals: Path, cases: list[tuple[str, int]]) -> Iterator[tuple[str, int, str, str, str]]:
    """Run cases in workers, each until it dies or hangs; yield kind, number, mutation, outcome and note."""
    left = list(cases)
    while left:
        with tempfile.TemporaryDirectory() as folder, _worker(Path(folder), originals) as worker:
            assert worker.stdin is not None and worker.stdout is not None
            while left:
                kind, number = left.pop(0)
                worker.stdin.write(f"{kind}\t{number}\n")
                worker.stdin.flush()
                ready, _, _ = select.select([worker.stdout], [], [], SECONDS)
                line = worker.stdout.readline() if ready else ""
                if not line:
                    worker.kill()
                    code = worker.wait()
                    yield kind, number, "?", "hang" if not ready else "crash", f"exit {code}"
                    break
                yield (kind, number, *json.loads(line))


@contextlib.contextmanager
def _worker(folder: Path, originals: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--work", str(folder), "--originals", str(originals)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as worker:
        yield worker
        if worker.stdin is not None:
            worker.stdin.close()


def main(
    count: Annotated[int, typer.Option(help="Cases in all")] = 10_000,
    only: Annotated[list[str] | None, typer.Option(help="A kind of file, such as program")] = None,
    workers: Annotated[int, typer.Option(help="Processes at once")] = 2,
    json_output: Annotated[Path | None, typer.Option("--json", help="Write the counts")] = None,
    work_in: Annotated[Path | None, typer.Option("--work", hidden=True)] = None,
    originals: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Mutate files of every kind, read them, and print what became of them; exit code 1 if anything is a fault."""
    if work_in is not None and originals is not None:
        work(work_in, originals)
        return
    rows = run(count, only=only, workers=workers)
    names = [*GOOD, "wrong", "ran", "exception", "many lines", "memory", "crash", "hang"]
    table = Table(title=f"{sum(sum(row.outcomes.values()) for row in rows)} mutated files")
    for name in ("kind", *names):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for row in rows:
        table.add_row(row.kind, *(str(row.outcomes.get(name, 0)) for name in names))
    Console().print(table)
    for fault in (fault for row in rows for fault in row.faults[:20]):
        print(fault)
    if json_output is not None:
        json_output.write_text(json.dumps([vars(row) for row in rows], indent=1))
    if any(row.faults for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
