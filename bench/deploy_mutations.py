"""Mutates states and loads them into a bundle's C code: each is taken as Python reads it, or refused with a code.

    python bench/deploy_mutations.py [--count 10000] [--cc gcc]

Flips, cuts, splices, and headers rewritten under fitting checksums: metadata, offsets, shapes, counts, nesting, huge
numbers. The code runs under AddressSanitizer and UBSan in a process of its own, each state in memory of just its size.
A refused state changes nothing. A state that is taken holds what `pock_tvm.device.checkpoint` finds in it. Read in
pieces, each has the same answer; where a piece cannot be read, nothing has changed, or the network says what has. Cases
are the same in every run.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from mutated_files import changed_json, cut, doubled, flipped, zeroed
from rich.console import Console
from rich.table import Table

import pock_tvm as pock
from pock_tvm.compiler.footprint.plan import HEAD_BYTES
from pock_tvm.device.checkpoint import read_checkpoint
from pock_tvm.device.state import TrainingState
from pock_tvm.errors import PockError

CODES = {0: "taken", 7: "damaged", 8: "other network"}
"""Answers that pock_load_state may give."""
HEADER_CRC = b'"header_crc32":"'
DRIVER = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pock.h"
#include "pock_runtime.h"

static _Alignas(POCK_ALIGNMENT) unsigned char weights[POCK_WEIGHTS_BYTES], memory[POCK_MEMORY_BYTES];
static unsigned char before[POCK_MEMORY_BYTES], first[POCK_STATE_BYTES], now[POCK_STATE_BYTES];

static size_t file(const char *path, void *data, size_t most) {
  FILE *from = fopen(path, "rb");
  size_t size = from ? fread(data, 1, most, from) : 0;
  if (from) fclose(from);
  return size;
}

typedef struct {
  const unsigned char *data;
  long calls, failing; /* so far; the one that fails */
} source;

static int read_part(void *from, size_t offset, void *data, size_t bytes) {
  source *of = from;
  memcpy(data, of->data + offset, bytes);
  return of->calls++ == of->failing;
}

/* Load a state in pieces: the answer is the same. If one cannot be read, nothing changes, or the network says so. */
static int is_same_in_pieces(pock *net, const unsigned char *state, size_t length, int code, uint32_t random) {
  static unsigned char again[POCK_MEMORY_BYTES];
  source whole = {state, 0, -1}, broken = {state, 0, 0};
  size_t size;
  memcpy(again, memory, sizeof memory);
  memcpy(memory, before, sizeof memory);
  if (pock_read_state(net, read_part, &whole, length) != code) return 0;
  if (memcmp(memory + HEAD_BYTES, again + HEAD_BYTES, sizeof memory - HEAD_BYTES)) return 0;
  if (!whole.calls) return 1;
  memcpy(memory, before, sizeof memory);
  broken.failing = random % whole.calls;
  int other = pock_read_state(net, read_part, &broken, length);
  int is_there = !memcmp(memory + HEAD_BYTES, before + HEAD_BYTES, sizeof memory - HEAD_BYTES);
  int is_told = other == POCK_SPOILED && pock_save_state(net, now, sizeof now, &size) == POCK_SPOILED;
  memcpy(memory, again, sizeof memory);
  return (other == POCK_IO && is_there) || (!code && is_told);
}

/* weights, original state < lengths and states > codes, and whether nothing changed or the state that was taken */
int main(int count, char **paths) {
  static unsigned char original[2 * POCK_STATE_BYTES];
  pock *net;
  size_t size;
  uint32_t length;
  if (count == 1) return printf("%zu", sizeof now) < 0;
  if (count != 3 || pock_init(&net, memory, sizeof memory, weights, file(paths[1], weights, sizeof weights))) abort();
  if (pock_load_state(net, original, file(paths[2], original, sizeof original))) abort();
  pock_save_state(net, first, sizeof first, &size);
  memcpy(before, memory, sizeof memory);
  while (fread(&length, sizeof length, 1, stdin) == 1) {
    unsigned char *state = malloc(length);
    if (fread(state, 1, length, stdin) != length) abort();
    int code = pock_load_state(net, state, length);
    if (!is_same_in_pieces(net, state, length, code, pock_crc32(0, state, length))) abort();
    pock_save_state(net, now, sizeof now, &size);
    putchar(code);
    if (code)
      putchar(!memcmp(now, first, sizeof now) &&
              !memcmp(memory + HEAD_BYTES, before + HEAD_BYTES, sizeof memory - HEAD_BYTES));
    else
      fwrite(now, 1, sizeof now, stdout);
    fflush(stdout);
    memcpy(memory, before, sizeof memory);
    free(state);
  }
  return 0;
}
"""


# ---- states ----------------------------------------------------------------------------------------------------------


def program_of(optimizer: Any) -> pock.Program:
    """A small network whose state has layouts, parts, two moments and gradient sums."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3))
    scheme = pock.Scheme({"*": "frozen", "*.bias": "full", "0.weight": "full", "2.weight": 0.5})
    exported = torch.export.export(model.eval(), (torch.zeros(2, 4, 6, 6),))
    return pock.compile(exported, scheme=scheme, optimizer=optimizer, accumulate=3, check=False)


def state_of(program: pock.Program, path: Path) -> bytes:
    """A state within an accumulation, as Python writes it; safetensors orders its metadata differently each time."""
    trainer, rng = pock.Trainer(program, threads=1), np.random.default_rng(0)
    for _ in range(4):
        trainer.step(rng.random((2, 4, 6, 6), "float32"), rng.integers(0, 3, 2), lr=0.01)
    trainer.save(path)
    header, data = parts(path.read_bytes())
    value = json.loads(header)
    path.write_bytes(joined(written(value | {"__metadata__": dict(sorted(value["__metadata__"].items()))}), data))
    return path.read_bytes()


def parts(state: bytes) -> tuple[bytes, bytes]:
    """Header and data of a state."""
    size = int.from_bytes(state[:8], "little")
    return state[8 : 8 + size], state[8 + size :]


def joined(header: bytes, data: bytes) -> bytes:
    """A state from its parts, under a checksum that fits if there is a place for it."""
    state = bytearray(len(header).to_bytes(8, "little") + header)
    at = state.find(HEADER_CRC) + len(HEADER_CRC)
    if at >= len(HEADER_CRC) and at + 8 <= len(state):
        state[at : at + 8] = b"00000000"
        state[at : at + 8] = b"%08x" % zlib.crc32(state)
    return bytes(state) + data


def written(header: Any) -> bytes:
    """A header's JSON."""
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


# ---- mutations -------------------------------------------------------------------------------------------------------

NUMBERS = ("-1", "", " 1", "1e3", "007", "18446744073709551615", "18446744073709551616", "9" * 400, "1", "2", "3", "x")
COUNTS = ("steps", "updates", "pending", "accumulate")


def counts(header: Any, rng: random.Random) -> None:
    """Change the numbers of steps."""
    header["__metadata__"][rng.choice(COUNTS)] = rng.choice(NUMBERS)


def offsets(header: Any, rng: random.Random) -> None:
    """Change where tensors lie."""
    names = [name for name in header if name != "__metadata__"]
    one, other = header[rng.choice(names)]["data_offsets"], header[rng.choice(names)]["data_offsets"]
    at = rng.randrange(2)
    value = rng.choice((other[at], 0, one[at] + rng.choice((-4, -1, 1, 4)), -8, 2**32, 2**63, 2**64 - 8, 10**30))
    one[at] = value
    if rng.random() < 0.3:
        one[1 - at] = value + rng.choice((0, 4, other[1] - other[0]))


def shapes(header: Any, rng: random.Random) -> None:
    """Change a tensor's shape or dtype."""
    record = header[rng.choice([name for name in header if name != "__metadata__"])]
    if rng.random() < 0.3:
        record["dtype"] = rng.choice(("F64", "F16", "I32", "", "F32 "))
    else:
        record["shape"] = rng.choice((record["shape"][::-1], [], [2**62, 4], [*record["shape"], 1], [-1], [0]))


def metadata(header: Any, rng: random.Random) -> None:
    """Change a member of the metadata, or what it holds as JSON."""
    found = header["__metadata__"]
    name = rng.choice(list(found))
    try:
        found[name] = json.dumps(changed_json(json.loads(found[name]), rng))
    except json.JSONDecodeError:
        found[name] = rng.choice(("", "0" * 8, found[name][::-1], found[name] + " ", "\\u0000", '"'))


def order(header: Any, rng: random.Random) -> None:
    """Shuffle the members: the state is the same."""
    for members in (header, header["__metadata__"]):
        items = list(members.items())
        rng.shuffle(items)
        members.clear()
        members.update(items)


def rewritten(header: bytes, rng: random.Random) -> bytes:
    """Change a header as JSON."""
    value = json.loads(header)
    change = rng.choice((counts, offsets, shapes, metadata, order, None))
    if change is None:
        value = changed_json(value, rng)
    else:
        change(value, rng)
    return written(value)


def retyped(header: bytes, rng: random.Random) -> bytes:
    """Change a header's text: structure, nesting, repeated or lost parts."""
    at = rng.randrange(len(header))
    what = rng.random()
    if what < 0.5:
        return header[:at] + bytes([rng.choice(b'"\\{}[],:09a -\x00\xff')]) + header[at + (what < 0.35) :]
    if what < 0.7:
        return doubled(header, rng)
    if what < 0.8:
        return (
            header[:at]
            + rng.choice((b"[", b"{", b'{"a":', b"]", b'"', b"\\")) * rng.choice((1, 9, 20_000))
            + header[at:]
        )
    end = rng.choice((b"}", b",", b'"', b"]}"))
    return cut(header, rng) if what < 0.9 else header[: header.find(end, at) + 1]


def revalued(state: bytes, rng: random.Random) -> bytes:
    """Change values under checksums that fit: another state of the same network."""
    header, data = parts(state)
    value, changed = json.loads(header), bytearray(data)
    name = rng.choice([each for each in value if each != "__metadata__"])
    begin, end = value[name]["data_offsets"]
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(begin, end)] = rng.randrange(256)
    value["__metadata__"][f"crc32.{name}"] = f"{zlib.crc32(changed[begin:end]):08x}"
    return joined(written(value), bytes(changed))


def resized(state: bytes, rng: random.Random) -> bytes:
    """Change the length of the header, or add to the end."""
    size = int.from_bytes(state[:8], "little")
    odd = (0, 1, size - 1, size + 1, size + 8, len(state) - 8, len(state), 2**31, 2**32 + size, 2**63, 2**64 - 8)
    return (
        rng.choice(odd).to_bytes(8, "little") + state[8:] if rng.random() < 0.7 else state + bytes(rng.randint(1, 99))
    )


def mutated(state: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation, and the mutated state."""
    (header, data), (other_header, other_data) = parts(state), parts(other)
    choices: dict[str, Callable[[], bytes]] = {
        "flipped": lambda: flipped(state, rng),
        "cut": lambda: cut(state, rng),
        "zeroed": lambda: zeroed(state, rng),
        "doubled": lambda: doubled(state, rng),
        "spliced": lambda: state[: rng.randrange(len(state))] + other[rng.randrange(len(other)) :],
        "spliced header": lambda: rng.choice((joined(other_header, data), joined(header, other_data), other)),
        "rewritten header": lambda: joined(rewritten(header, rng), data),
        "retyped header": lambda: joined(retyped(header, rng), data),
        "values": lambda: revalued(state, rng),
        "length": lambda: resized(state, rng),
    }
    weights = [1, 1, 1, 1, 1, 1, 6, 4, 1, 1]
    (name,) = rng.choices(list(choices), weights)
    return name, choices[name]()


# ---- the run ---------------------------------------------------------------------------------------------------------


def driver_of(folder: Path, cc: str) -> Path:
    """Compile the driver with a bundle under sanitizers."""
    (folder / "driver.c").write_text(DRIVER)
    sources = [*folder.glob("runtime/*.c"), *folder.glob("kernels/*.o"), folder / "pock.c", folder / "driver.c"]
    flags = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [f"-DHEAD_BYTES={HEAD_BYTES}", f"-I{folder}", f"-I{folder / 'runtime'}", f"-I{folder / 'kernels'}"]
    subprocess.run([cc, *flags, *map(str, sources), "-lm", "-o", str(folder / "driver")], check=True)
    return folder / "driver"


def answers(command: list[str], cases: list[bytes]) -> Iterator[tuple[int, bytes] | str]:
    """Yield for each case the code, and the state that was taken or whether nothing changed; a crash as text."""
    left, nbytes = list(cases), int(subprocess.run(command[:1], capture_output=True, check=True).stdout)
    while left:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            while left:
                case = left.pop(0)
                process.stdin.write(len(case).to_bytes(4, "little") + case)
                process.stdin.flush()
                code = process.stdout.read(1)
                if not code:
                    yield process.stderr.read().decode(errors="replace")[:400]
                    break
                yield code[0], process.stdout.read(1 if code[0] else nbytes)


def same(one: TrainingState, other: TrainingState) -> bool:
    """Whether two states are equal, bit by bit, but for their notes."""
    pairs = [(array, other.weights[name]) for name, array in one.weights.items()]
    pairs += [(mine.values, theirs.values) for mine, theirs in zip(one.states, other.states, strict=True)]
    numbers = [(each.steps, each.updates, each.pending) for each in (one, other)]
    return numbers[0] == numbers[1] and all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)


def without_notes(case: bytes) -> bytes:
    """A state without its notes, which no device reads."""
    header, data = parts(case)
    value = json.loads(header)
    value["__metadata__"]["notes"] = "{}"
    return joined(written(value), data)


def judged(answer: tuple[int, bytes] | str, case: bytes, program: pock.Program, folder: Path) -> str:
    """Return the outcome of a case; one that is not among ``CODES`` is a fault."""
    if isinstance(answer, str):
        return f"crash: {answer}"
    code, rest = answer
    if code:
        return CODES.get(code, f"code {code}") if rest == b"\1" else "refused, and changed"
    (folder / "taken.ckpt").write_bytes(rest)
    taken = read_checkpoint(folder / "taken.ckpt", program)
    try:
        (folder / "case.ckpt").write_bytes(without_notes(case))
        return "taken" if same(taken, read_checkpoint(folder / "case.ckpt", program)) else "taken, and not the same"
    except (PockError, ValueError) as error:
        return f"taken, and refused in Python: {error}"


def run(count: int, cc: str) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Run some number of cases: how often each mutation had which outcome, and a line for each fault."""
    with tempfile.TemporaryDirectory() as name:
        folder, program = Path(name), program_of(pock.Adam())
        state, other = state_of(program, folder / "one.ckpt"), state_of(program_of(pock.SGD()), folder / "two.ckpt")
        bundle = pock.deploy(program, folder / "net", build=False)
        command = [str(driver_of(bundle, cc)), str(bundle / "weights.bin"), str(folder / "one.ckpt")]
        named = [mutated(state, other, random.Random(number)) for number in range(count)]
        outcomes, faults = Counter[tuple[str, str]](), []
        given = zip(named, answers(command, [case for _, case in named]), strict=True)
        for number, ((what, case), answer) in enumerate(given):
            outcome = judged(answer, case, program, folder)
            outcomes[what, outcome if outcome in CODES.values() else "fault"] += 1
            if outcome not in CODES.values():
                faults.append(f"{number}, {what}: {outcome}")
        return outcomes, faults


def main(
    count: Annotated[int, typer.Option(min=1, help="Cases")] = 10_000,
    cc: Annotated[str, typer.Option(help="A C compiler that has the sanitizers")] = "gcc",
) -> None:
    """Mutate states, load them, and print what became of them; exit code 1 if anything is a fault."""
    outcomes, faults = run(count, cc)
    columns = [*CODES.values(), "fault"]
    table = Table("mutation", *columns, title=f"{count} mutated states")
    for what in dict.fromkeys(name for name, _ in outcomes):
        table.add_row(what, *(str(outcomes[what, each]) for each in columns))
    Console().print(table)
    for fault in faults[:20]:
        print(fault)
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
