"""Tables of measured steps, and the ratios that are to be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from step_models import NETWORKS

MIB = 2**20
Record = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A ratio to reach: how many times as fast as PyTorch a step is to be, with one scheme and batch or with any."""

    model: str
    ratio: str
    """Key of the ratio in a record."""
    factor: float
    scheme: str | None = None
    batch: int | None = None

    def is_for(self, record: Record) -> bool:
        """Return whether a record's step is to reach this ratio."""
        wanted = {"model": self.model, "scheme": self.scheme, "batch": self.batch}
        return record["system"] == "ours" and all(record[key] == value for key, value in wanted.items() if value)


BEST_SAME, DEFAULT_FULL = "ratio_vs_torch_best_same", "ratio_vs_torch_full"
GOALS = (
    Goal("mobilenetv2", BEST_SAME, 3),
    Goal("resnet50", BEST_SAME, 2),
    Goal("distilbert", BEST_SAME, 1.5),
    Goal("llama", BEST_SAME, 1.25),
    Goal("mobilenetv2", DEFAULT_FULL, 13, "pockengine", 1),
    Goal("mobilenetv2", DEFAULT_FULL, 20, "pockengine", 8),
    Goal("mcunet", DEFAULT_FULL, 18, "pockengine", 1),
    Goal("mcunet", DEFAULT_FULL, 15, "pockengine", 8),
)


def table(records: Sequence[Record]) -> Table:
    """Tabulate the records of one model and batch."""
    first = records[0]
    title = f"{NETWORKS[first['model']].title}, batch {first['batch']}, {first['threads']} threads"
    result = Table(title=f"{title}; the machine does {first['peak_gflops']:.0f} GFLOP/s")
    for name in ("scheme", "system"):
        result.add_column(name, no_wrap=True)
    for name in ("step ms", "quartiles"):
        result.add_column(name, justify="right", no_wrap=True)
    for name in ("GFLOP/s", "of peak", "planned MiB", "RSS MiB", "added MiB"):
        result.add_column(name, justify="right")
    for name in ("x torch full", "x best full", "x best same"):
        result.add_column(name, justify="right")
    for r in records:
        low, high = r["quartiles_ms"]
        result.add_row(
            r["scheme"],
            title_of(r["system"], r["variant"]),
            f"{r['ms']:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{r['gflops']:.1f}",
            f"{100 * r['peak_fraction']:.0f} %",
            *("-" if r[key] is None else f"{r[key] / MIB:.1f}" for key in ("train_bytes", "rss_bytes", "added_bytes")),
            *(
                "-" if r[key] is None else f"{r[key]:.2f}"
                for key in ("ratio_vs_torch_full", "ratio_vs_torch_best_full", "ratio_vs_torch_best_same")
            ),
        )
    return result


def needed_shares(record: Record) -> list[str]:
    """Say for each goal of a record's step which share of peak would reach it, counted as in the column of shares."""
    lines = []
    for goal in GOALS:
        ratio = record[goal.ratio] if goal.is_for(record) else None
        if ratio is None:
            continue
        peer = "torch full" if goal.ratio == DEFAULT_FULL else "best same"
        needed = 100 * record["peak_fraction"] * goal.factor / ratio
        line = f"{record['scheme']}: {goal.factor:g} x {peer} would need {needed:.0f} % of peak"
        flops = 1e6 * record["gflops"] * record["ms"]
        saved = 1 - record["done_flops"] / flops
        lines.append(line + (f"; Winograd saves {100 * saved:.0f} % of what is counted" if saved > 0.005 else ""))
    return lines


def title_of(system: str, variant: str | None) -> str:
    """Name a system; of PyTorch at its best, with the variant that was."""
    return f"torch-best ({variant})" if system == "torch-best" else system
