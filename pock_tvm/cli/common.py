"""Options that commands share, and parsers of their values."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PockError

app = typer.Typer(help="Compiles a trained network into a training program for a small device, and trains it.")

MODEL = Annotated[Path, typer.Argument(help="A network: .pt2 (torch.export.save) or .onnx")]
PROGRAM = Annotated[Path, typer.Argument(help="A compiled program")]
DATA = Annotated[Path, typer.Option(help="A folder per class of images, or an .npz file of the inputs and y")]
LOSS = Annotated[str, typer.Option(help="cross_entropy, causal_lm, mse, bce_with_logits or output")]
SCHEME = Annotated[str, typer.Option(help="full, head, bias, bias:7, last:3, pockengine, or a JSON file")]
BATCH_NORM = Annotated[
    str | None, typer.Option(help="Statistics in training: frozen, which is the default, or batch: those of each batch")
]
BATCH = Annotated[int | None, typer.Option(help="The batch, where the model leaves it open")]
SHAPE = Annotated[list[str] | None, typer.Option(help="The shape of an input: input_ids=8,128")]
TARGET = Annotated[
    str,
    typer.Option(
        help="host, calibrated (the host as pock calibrate measured it), pi4 or another machine that pock targets "
        "lists, a tag of TVM's, or a target as JSON"
    ),
]
FLASH = Annotated[str | None, typer.Option(help="Flash of a microcontroller: 512KB; by default as its target says")]
RAM = Annotated[str | None, typer.Option(help="RAM of a microcontroller: 256KB; by default as its target says")]
DEVICE = Annotated[
    str | None, typer.Option(help="For a GPU's program, where it runs: opencl:1; by default the first of its kind")
]
THREADS = Annotated[int | None, typer.Option(help="Cores to run on; all by default")]
TRUST = Annotated[
    bool, typer.Option("--trust", help="Read the network's file as it is, though code that lies in it may run")
]
SIGNATURE = Annotated[Path | None, typer.Option(help="A public key: refuse a program that its owner has not signed")]
CHECKPOINT = Annotated[Path | None, typer.Option(help="A checkpoint, or a folder, of which the newest is taken")]
ALLOW_DROP = Annotated[
    bool, typer.Option("--allow-drop", help="Take a checkpoint that holds more than this program has a place for")
]
MEAN = Annotated[str | None, typer.Option(help="Mean of each channel in 0 … 1, such as 0.485,0.456,0.406")]
STD = Annotated[str | None, typer.Option(help="Standard deviation of each channel in 0 … 1")]
VAL = Annotated[Path | None, typer.Option(help="Data to evaluate on before the first and after each epoch")]
EPOCHS = Annotated[int, typer.Option(min=0)]
LR = Annotated[float, typer.Option(help="Learning rate")]
STATE = typer.Option(help="The file to keep the state in; the best by --val is kept beside it")
CHECKPOINT_EVERY = typer.Option(min=1, help="Steps between two checkpoints, beside those after each epoch")
KEEP = Annotated[int, typer.Option(min=1, help="How many of the last checkpoints to keep")]
RESUME = Annotated[bool, typer.Option("--resume", help="Go on where the run that wrote --checkpoint was")]
START = Annotated[Path | None, typer.Option(help="A checkpoint whose state a new run starts from")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that this run does not start from")]
TOLERATE = Annotated[int, typer.Option(min=0, help="Steps that may meet values that are not finite; each is left out")]
SEED = Annotated[int, typer.Option(min=0)]


ARGUMENTS = (
    "batch", "shapes", "scheme", "loss", "optimizer", "target", "batch_norm", "accumulate", "micro_batches",
    "clip_norm", "guard", "precision", "frozen", "max_drop", "memory_budget", "threads", "device", "lr", "mean",
    "std", "flash", "ram", "key", "database", "trials", "strategy", "seed", "cost_model", "space", "measure", "model",
    "memory", "cc",
)  # fmt: skip
"""Arguments of Python functions that are options of commands."""
FLAGS = ("allow_drop", "dropout", "keep_going", "overwrite", "slim", "trust")
"""Arguments of Python functions that are options of commands without a value."""


class LrSchedule(StrEnum):
    """Names of :mod:`pock_tvm.training.lr_schedules`."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


LR_SCHEDULE = Annotated[LrSchedule, typer.Option()]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def as_options(text: str) -> str:
    """Rephrase a message about Python arguments for the command line: ``--batch`` for ``batch=``."""
    text = text.replace("check=False", "--no-check")
    text = re.sub(r"shapes=\{'(\w+)': \(…\)\}", r"--shape \1=…", text)
    return re.sub(
        rf"\b({'|'.join(ARGUMENTS)})=('?)(\S?)",
        lambda match: f"--{match[1].replace('_', '-')}{' ' if match[3] else ''}{match[2]}{match[3]}",
        re.sub(rf"\b({'|'.join(FLAGS)})=True", lambda match: f"--{match[1].replace('_', '-')}", text),
    )


def restored(trainer: Any, checkpoint: Path, *, allow_drop: bool) -> None:
    """Restore a checkpoint; say what it had too much or too little for the program."""
    from ..training.progress import check_notes

    report = trainer.restore(checkpoint, allow_drop=allow_drop)
    check_notes(trainer.notes)
    if report.added or report.dropped:
        typer.echo(str(report), err=True)


def preprocessing_for(trainer: Any, data: Path, mean: str | None, std: str | None) -> Any:
    """Preprocessing of images: by the options, otherwise as the checkpoint or the program has it.

    Warns if nobody said how images are to be scaled.
    """
    stored = trainer.program.manifest.get("preprocessing", {}) | (trainer.notes.get("preprocessing") or {})
    warn_of_defaults(data, stored, mean, std)
    return preprocessing_of(stored, mean, std)


def warn_of_defaults(data: Path, stored: Mapping[str, Any], mean: str | None, std: str | None) -> None:
    """Warn if images are read with a default mean or standard deviation."""
    from ..errors import PockWarning

    missing = [name for name, text in (("mean", mean), ("std", std)) if text is None and name not in stored]
    if missing and data.is_dir():
        taken = " and ".join({"mean": "a mean of 0", "std": "a standard deviation of 1"}[name] for name in missing)
        warnings.warn(
            f"nobody said how the network wants its pictures: {taken} is taken, that is pixels from 0 to 1. If it was "
            f"trained otherwise, give --mean and --std, or write them into a JSON file beside the model before "
            "compiling (net.json beside net.pt2)",
            PockWarning,
            stacklevel=2,
        )


def named_scheme(text: str, model: Any) -> Any:
    """Build the scheme of a name, or load it from a JSON file."""
    from ..schemes.scheme import Scheme

    name, _, count = text.partition(":")
    if count and not count.isdigit():
        raise PockError(f"'{text}': {count!r} is no number")
    named = {
        "full": lambda: Scheme.full(),
        "head": lambda: Scheme.head_only(model),
        "bias": lambda: Scheme.bias_only(model, last=int(count) if count else None),
        "last": lambda: Scheme.last_layers(model, int(count or 1)),
        "pockengine": lambda: Scheme.pockengine(model),
    }
    if name in named:
        return named[name]()
    if not Path(text).suffix:
        raise PockError(f"there is no scheme '{text}'; there are {', '.join(named)}, and JSON files")
    return Scheme.load(text)


def check_text(check: Mapping[str, Any] | None) -> str:
    """Describe a program's self-check in one line."""
    if check is None:
        return "not checked"
    rest = f"; not checked: {', '.join(check['unchecked'])}" if check["unchecked"] else ""
    build = " (this machine's build of it)" if "build" in check else ""
    disputed = check.get("disputed")  # which older programs do not say
    but = f"; wrong there, by differences of its own loss: {', '.join(disputed)}" if disputed else ""
    return f"checked against {check['against']} in {check['seconds']:.1f} s: equal{build}{but}{rest}"


def eight_bits_text(quantized: Mapping[str, Any]) -> str:
    """Describe the layers in eight bits: how many, how well they were checked, and which others stay float."""
    check, text = quantized.get("check"), f"{len(quantized['layers'])} frozen layers in eight bits"
    if check is not None:
        text += f", equal to {check['against']}"
        text += f"; outputs are {check['error']:.1%} from those in float" if "error" in check else ""
    if "drop" in quantized:
        text += f"; on the calibration data outputs are {quantized['drop']:.1%} from those in float"
    return text + "".join(f"; '{name}' stays float: {why}" for name, why in quantized["float"].items())


def optimizer_of(text: str) -> Any:
    """Parse an optimizer such as ``sgd:momentum=0.9``."""
    from ..device.optimizers import KINDS

    name, _, options = text.partition(":")
    if name not in KINDS:
        raise PockError(f"there is no optimizer '{name}'; there are {', '.join(KINDS)}")
    given: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        try:
            given[key] = json.loads(value.lower())
        except ValueError as error:
            raise PockError(f"'{option}' is no option of an optimizer: write momentum=0.9") from error
    if {"beta1", "beta2"} & given.keys():
        given["betas"] = (given.pop("beta1", 0.9), given.pop("beta2", 0.999))
    return KINDS[name](**given)


def shapes_of(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Parse shapes of inputs, each such as ``input_ids=8,128``."""
    shapes = {}
    for text in texts:
        name, _, extents = text.partition("=")
        if not extents or not all(extent.strip().isdigit() for extent in extents.split(",")):
            raise PockError(f"'{text}' is no shape: write input_ids=8,128")
        shapes[name] = tuple(int(extent) for extent in extents.split(","))
    return shapes


def preprocessing_of(stored: Mapping[str, Any], mean: str | None, std: str | None) -> Any:
    """Parse mean and standard deviation, with the stored ones, else 0 and 1, as defaults."""
    from ..training.beside import Preprocessing

    default = Preprocessing()
    chosen = {}
    for name, text in (("mean", mean), ("std", std)):
        try:
            numbers = [float(value) for value in text.split(",")] if text else stored.get(name, getattr(default, name))
        except ValueError as error:
            raise PockError(f"--{name} takes numbers with commas between, not '{text}'") from error
        chosen[name] = tuple(numbers)
    return Preprocessing(**chosen)


def mb_text(size: int) -> str:
    """Format an amount of memory in MiB."""
    return f"{size / 2**20:.2f} MiB"


@contextlib.contextmanager
def progress_bar(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback of label, steps done and all steps, which draws progress bars."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console)
    rows: dict[str, Any] = {}

    def show(what: str, done: int, count: int) -> None:
        if not rows:
            bar.start()
        if what not in rows:
            rows[what] = bar.add_task(what, total=count)
        bar.update(rows[what], completed=done)

    try:
        yield show
    finally:
        if rows:
            bar.stop()
