"""Judges rows in processes of their own."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
from torch.export import decomp_utils, exported_program

from .judge import CRASH, SCHEMES, Outcome, judge
from .table import ROWS


def work(names: list[str], results: Connection) -> None:
    """Judge rows in a worker process, sending the outcome of each."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    # Each import lists all of PyTorch's operators again, which takes a second and never changes here.
    for module in (exported_program, decomp_utils):
        module._collect_all_valid_cia_ops = functools.cache(module._collect_all_valid_cia_ops)
    for name in names:
        results.send(judge(ROWS[name]))


def judged(names: list[str], limit: float) -> Iterator[Outcome]:
    """Yield the outcome of each row. A process that dies or hangs loses the current row alone."""
    os.environ["TVM_NUM_THREADS"] = "1"  # of the processes: as many as PyTorch has there
    context = multiprocessing.get_context("spawn")
    pending = list(names)
    while pending:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(pending, sender), daemon=True)
        process.start()
        sender.close()
        fault = f"no answer in {limit:.0f} s"
        try:
            while receiver.poll(limit):
                outcome = receiver.recv()
                del pending[0]
                yield outcome
        except EOFError:
            process.join()
            fault = f"the process died with code {process.exitcode}"
        process.kill()
        process.join()
        if pending:
            yield Outcome(pending.pop(0), dict.fromkeys(SCHEMES, CRASH), fault, expected=False)
