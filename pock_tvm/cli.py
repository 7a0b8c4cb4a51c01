"""The command ``pock``."""

from __future__ import annotations

import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import PockError

app = typer.Typer(
    help="Compiles a trained network into a training program for a small device, and trains it.", no_args_is_help=True
)

MODEL = Annotated[Path, typer.Argument(help="A network: .pt2 (torch.export.save) or .onnx")]
PROGRAM = Annotated[Path, typer.Argument(help="A compiled program")]
DATA = Annotated[Path, typer.Option(help="A folder per class of images, or an .npz file of the inputs and y")]
THREADS = Annotated[int | None, typer.Option(help="Cores to run on; all by default")]
CHECKPOINT = Annotated[Path | None, typer.Option(help="A checkpoint to go on from, or to write")]
MEAN = Annotated[str | None, typer.Option(help="Mean of each channel in 0 … 1, such as 0.485,0.456,0.406")]
STD = Annotated[str | None, typer.Option(help="Standard deviation of each channel in 0 … 1")]


class LrSchedule(StrEnum):
    """The names of :mod:`pock_tvm.lr_schedules`."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


@app.command("compile")
def compile_(
    model: MODEL,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the program")],
    scheme: Annotated[str, typer.Option(help="full, head, bias, bias:7, last:3, pockengine, or a JSON file")] = "full",
    loss: Annotated[
        str, typer.Option(help="cross_entropy, causal_lm, mse, bce_with_logits or output")
    ] = "cross_entropy",
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam or adamw, with options: sgd:momentum=0.9,weight_decay=1e-4")
    ] = "sgd:momentum=0.9",
    batch: Annotated[int | None, typer.Option(help="The batch, where the model leaves it open")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="The shape of an input: input_ids=8,128")] = None,
    target: Annotated[
        str, typer.Option(help="host, a tag of TVM's such as raspberry-pi/4b-aarch64, or a target as JSON")
    ] = "host",
    batch_norm: Annotated[str, typer.Option(help="Statistics in training: frozen, or those of each batch")] = "frozen",
    accumulate: Annotated[int, typer.Option(help="Steps that share one update")] = 1,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of all gradients together")] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Most memory beside the weights, such as 64MB: recompute where it takes more")
    ] = None,
    dump: Annotated[Path | None, typer.Option(help="A folder for the module after each phase")] = None,
) -> None:
    """Compile a network into a training program."""
    from rich.console import Console

    from .compiler import compile as compile_program
    from .data import Preprocessing
    from .frontend import load_model

    console = Console(stderr=True)
    preprocessing = Preprocessing.beside(model)
    with console.status(f"reading {model.name}"):
        imported = load_model(model, batch=batch, shapes=_shapes(shape or []))
    with console.status("compiling"):
        program = compile_program(
            imported,
            scheme=_scheme(scheme, imported),
            loss=loss,
            optimizer=_optimizer(optimizer),
            target=target,
            batch_norm=batch_norm,
            accumulate=accumulate,
            clip_norm=clip_norm,
            memory_budget=memory_budget,
            dump=dump,
        )
    if preprocessing is not None:
        program.manifest["preprocessing"] = preprocessing.to_json()
    program.save(output)
    memory = program.memory()
    console.print(f"{output}: {len(program.trained)} parameters trained, arena {_mb(memory['arena'])}")


@app.command()
def train(
    program: PROGRAM,
    data: DATA,
    val: Annotated[Path | None, typer.Option(help="Data to evaluate on after each epoch")] = None,
    epochs: Annotated[int, typer.Option(min=0)] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate")] = 0.01,
    lr_schedule: Annotated[LrSchedule, typer.Option()] = LrSchedule.COSINE,
    checkpoint: CHECKPOINT = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint, if it is there")] = False,
    mean: MEAN = None,
    std: STD = None,
    flip: Annotated[bool, typer.Option(help="Flip training images at random")] = False,
    crop: Annotated[bool, typer.Option(help="Crop training images at random")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    threads: THREADS = None,
) -> None:
    """Train a program on your data."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from .data import Augmentation, evaluation_batches, open_data, training_batches
    from .lr_schedules import SCHEDULES
    from .trainer import Trainer

    console = Console()
    trainer = Trainer(program, threads=threads)
    manifest = trainer.program.manifest
    preprocessing = _preprocessing(manifest, mean, std)
    training = open_data(data, manifest["inputs"], preprocessing, Augmentation(flip, crop))
    validation = open_data(val, manifest["inputs"], preprocessing) if val is not None else None
    batch = manifest["inputs"][0]["shape"][0]
    if len(training) < batch:
        raise PockError(f"'{data}' holds {len(training)} samples, fewer than one batch of {batch}")
    if resume and checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    if validation is not None:
        console.print(f"before: {_result(trainer.evaluate(evaluation_batches(validation, batch)))}")
    rng = np.random.default_rng(seed)
    per_epoch = len(training) // batch
    for epoch in range(epochs):
        losses = []
        batches = training_batches(training, batch, rng)
        for number, (x, y) in enumerate(
            track(batches, f"epoch {epoch + 1}", per_epoch, console=console, transient=True)
        ):
            done = (epoch * per_epoch + number) / (epochs * per_epoch)
            losses.append(trainer.step(x, y, lr=lr * SCHEDULES[lr_schedule](done)))
        line = f"epoch {epoch + 1}: training loss {np.mean(losses):.4f}"
        if validation is not None:
            line += f"; validation {_result(trainer.evaluate(evaluation_batches(validation, batch)))}"
        console.print(line)
        if checkpoint is not None:
            trainer.save(checkpoint)


@app.command("eval")
def evaluate(
    program: PROGRAM,
    data: DATA,
    checkpoint: CHECKPOINT = None,
    mean: MEAN = None,
    std: STD = None,
    threads: THREADS = None,
) -> None:
    """Measure loss and accuracy on data."""
    from rich.console import Console

    from .data import evaluation_batches, open_data
    from .trainer import Trainer

    trainer = Trainer(program, threads=threads)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    manifest = trainer.program.manifest
    samples = open_data(data, manifest["inputs"], _preprocessing(manifest, mean, std))
    Console().print(_result(trainer.evaluate(evaluation_batches(samples, manifest["inputs"][0]["shape"][0]))))


@app.command()
def inspect(
    program: PROGRAM,
    plot: Annotated[Path | None, typer.Option(help="Draw the arena over time: the picture to write")] = None,
    profile: Annotated[bool, typer.Option(help="Run a step, and show the time of each kernel")] = False,
    threads: THREADS = None,
) -> None:
    """Show what a program trains, what it costs and what it holds in memory."""
    from rich.console import Console

    from .program import Program
    from .tables import kernel_table, layer_table, memory_table, summary

    loaded = Program.load(program)
    console = Console()
    if plot is not None:
        from .plots import draw_memory

        draw_memory(loaded, plot)
    if profile:
        from .profile import example
        from .profile import profile as profile_step
        from .trainer import Trainer

        console.print(kernel_table(profile_step(Trainer(loaded, threads=threads), *example(loaded))))
        return
    console.print(summary(loaded))
    console.print(layer_table(loaded))
    console.print(memory_table(loaded))


@app.command()
def schemes(
    model: MODEL,
    save: Annotated[str | None, typer.Option(help="Write one of them: its name")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write it")] = None,
) -> None:
    """List the named schemes for a network, and what each trains."""
    from rich.console import Console

    from .frontend import load_model
    from .tables import scheme_table

    imported = load_model(model, any_shape=True)
    if save is not None:
        if output is None:
            raise PockError("--save needs --output: the file to write the scheme to")
        _scheme(save, imported).save(output)
        return
    found = {}
    for name in ("full", "head", "bias", "bias:7", "last:3", "pockengine"):
        try:
            found[name] = _scheme(name, imported).resolve(imported)
        except PockError:
            continue  # nothing was published for this kind of network
    Console().print(scheme_table(found, imported))


@app.command()
def export(
    program: PROGRAM,
    weights: Annotated[Path, typer.Option(help="The safetensors file to write")],
    checkpoint: CHECKPOINT = None,
) -> None:
    """Write the weights under PyTorch's names, for PyTorch to load."""
    import numpy as np
    import safetensors.numpy

    from .trainer import Trainer

    trainer = Trainer(program)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    safetensors.numpy.save_file(
        {name: np.asarray(array, order="C") for name, array in trainer.weights().items()}, weights
    )


@app.command()
def demo() -> None:
    """Pretrain a small network on digits, then personalise it to a user whose digits look different."""
    from .demo import run

    run()


def main() -> None:
    """Run the command; a fault of the user's is one clear line and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # PyTorch, of its own exported programs
    try:
        app(standalone_mode=False)
    except PockError as error:
        print(f"pock: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what Typer says of a wrong option or argument
            raise
        print(f"pock: {error.format_message()}", file=sys.stderr)
        sys.exit(2)


# ---- what is written on the command line -----------------------------------------------------------------------------


def _scheme(text: str, model: Any) -> Any:
    from .scheme import Scheme

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


def _optimizer(text: str) -> Any:
    from .optimizers import KINDS

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
    try:
        return KINDS[name](**given)
    except TypeError as error:
        fields = ", ".join(KINDS[name].__dataclass_fields__)
        raise PockError(f"'{text}': {name} has the options {fields}") from error


def _shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, extents = text.partition("=")
        if not extents or not all(extent.strip().isdigit() for extent in extents.split(",")):
            raise PockError(f"'{text}' is no shape: write input_ids=8,128")
        shapes[name] = tuple(int(extent) for extent in extents.split(","))
    return shapes


def _preprocessing(manifest: dict[str, Any], mean: str | None, std: str | None) -> Any:
    from .data import Preprocessing

    stored = manifest.get("preprocessing", {})
    default = Preprocessing()
    chosen = {}
    for name, text in (("mean", mean), ("std", std)):
        try:
            numbers = [float(value) for value in text.split(",")] if text else stored.get(name, getattr(default, name))
        except ValueError as error:
            raise PockError(f"--{name} takes numbers with commas between, not '{text}'") from error
        chosen[name] = tuple(numbers)
    return Preprocessing(**chosen)


def _result(result: dict[str, float]) -> str:
    text = f"loss {result['loss']:.4f}"
    return f"accuracy {100 * result['accuracy']:.2f} %, {text}" if "accuracy" in result else text


def _mb(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
