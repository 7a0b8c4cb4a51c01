"""Mutates files of every kind and reads them: each is right or refused in one line, without crash, hang or much memory.

    python bench/mutations.py [--count 10000] [--only program] [--json out.json]

Every case is numbered, and the same in every run: flipped bits, cut, spliced and zeroed files, bombs, deep nesting,
members rewritten under fitting checksums. A library under a fitting checksum is code: it is tried only where a
signature is required. Cases run in processes of their own. ``file_kinds.py`` has the kinds, ``mutated_files.py`` the
mutations.
"""

from __future__ import annotations

import contextlib
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
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.file_kinds import READERS, SHARE, make_originals  # noqa: E402
from bench.mutated_files import mutated  # noqa: E402

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
