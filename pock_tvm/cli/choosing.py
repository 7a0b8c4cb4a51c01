"""Commands that choose what to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PockError
from .common import (
    BATCH,
    DATA,
    LOSS,
    MEAN,
    MODEL,
    SHAPE,
    STD,
    TRUST,
    LrSchedule,
    app,
    mb_text,
    named_scheme,
    optimizer_of,
    preprocessing_of,
    progress_bar,
    shapes_of,
    warn_of_defaults,
)

CONTRIBUTIONS = Annotated[Path, typer.Argument(help="What 'pock analyze' wrote")]
MEMORY = Annotated[str | None, typer.Option(help="Most memory beside the weights, such as 64MB")]
TARGET = Annotated[str | None, typer.Option(help="Another machine than this: a tag of TVM's, or a target as JSON")]
PROFILES = Annotated[list[Path] | None, typer.Option(help="Profiles of that machine, by 'pock inspect --json' there")]
LATENCY = Annotated[str | None, typer.Option(help="Longest training step, such as 20ms")]


@app.command()
def schemes(
    model: MODEL,
    save: Annotated[str | None, typer.Option(help="Write one of them: its name")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write it")] = None,
    trust: TRUST = False,
) -> None:
    """List the named schemes for a network, and what each trains."""
    from rich.console import Console

    from ..device.files import check_folder
    from ..frontend import load_model
    from ..reports.tables import scheme_table

    if save is not None and output is None:
        raise PockError("--save needs --output: the file to write the scheme to")
    if output is not None:
        check_folder(output)
    imported = load_model(model, any_shape=True, trust=trust)
    if save is not None and output is not None:
        named_scheme(save, imported).save(output)
        return
    resolved = {}
    for name in ("full", "head", "bias", "bias:7", "last:3", "pockengine"):
        try:
            resolved[name] = named_scheme(name, imported).resolve(imported)
        except PockError:
            continue  # no scheme is published for this kind of network
    Console().print(scheme_table(resolved, imported))


@app.command()
def analyze(
    model: MODEL,
    data: DATA,
    val: Annotated[Path, typer.Option(help="Data to measure accuracy on, not to train on")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write what is measured")],
    epochs: Annotated[float, typer.Option(help="Length of the longest runs")] = 4,
    lr: Annotated[float, typer.Option(help="Learning rate of all runs")] = 0.01,
    lr_schedule: Annotated[LrSchedule, typer.Option()] = LrSchedule.COSINE,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw, with options")] = "sgd:momentum=0.9",
    loss: LOSS = "cross_entropy",
    batch: BATCH = None,
    shape: SHAPE = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often the best are trained")] = 3,
    ratios: Annotated[str, typer.Option(help="Shares of input channels that are tried")] = "0.125,0.25,0.5,1",
    depths: Annotated[int | None, typer.Option(min=1, help="How many numbers of last biases are tried; all")] = None,
    mean: MEAN = None,
    std: STD = None,
    flip: Annotated[bool, typer.Option(help="Flip training images at random")] = False,
    crop: Annotated[bool, typer.Option(help="Crop training images at random")] = False,
    quick: Annotated[bool, typer.Option(help="Train nothing: first-order scores from one pass over the data")] = False,
    kinds: Annotated[
        bool, typer.Option(help="A run for each kind of weights, not each weight: for transformers")
    ] = False,
    scheduler: Annotated[str | None, typer.Option(help="A Dask scheduler to run on: tcp://host:8786")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine; one a core")] = None,
    trust: TRUST = False,
) -> None:
    """Measure what training each piece of a network brings, and what it takes."""
    from rich.console import Console

    from ..choosing.analysis import analyze as measure
    from ..choosing.first_order import score
    from ..choosing.task import Task
    from ..choosing.weight_groups import analyze_kinds
    from ..device import optimizers
    from ..reports.choice_tables import contribution_table
    from ..training.beside import Preprocessing
    from ..training.recipe import Recipe

    beside = Preprocessing.beside(model)
    stored = beside.to_json() if beside else {}
    warn_of_defaults(data, stored, mean, std)
    preprocessing = preprocessing_of(stored, mean, std).to_json()
    task = Task(
        str(model.resolve()),
        str(data.resolve()),
        str(val.resolve()),
        Recipe(epochs, lr, lr_schedule.value),
        batch=batch,
        shapes=shapes_of(shape or []),
        loss=loss,
        optimizer=optimizers.to_json(optimizer_of(optimizer)),
        seeds=seeds,
        ratios=_ratios(ratios),
        depths=depths,
        flip=flip,
        crop=crop,
        preprocessing=preprocessing,
        trust=trust,
    )
    if quick and kinds:
        raise PockError("--quick trains nothing, and --kinds trains a little: give one of them")
    console = Console(stderr=True)

    def warn(text: str) -> None:
        console.print(f"pock: warning: {text}", markup=False, highlight=False)

    with progress_bar(console) as progress:
        if quick:
            contributions = score(task, output, progress=progress, warn=warn)
        else:
            run = analyze_kinds if kinds else measure
            contributions = run(task, output, scheduler=scheduler, workers=workers, progress=progress, warn=warn)
    Console().print(contribution_table(contributions))


@app.command()
def search(
    model: MODEL,
    contributions: CONTRIBUTIONS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the scheme")],
    memory: MEMORY = None,
    latency: LATENCY = None,
    target: TARGET = None,
    profile: PROFILES = None,
    frozen: Annotated[
        str, typer.Option(help="int8 also looks for schemes whose frozen layers have eight bits, on CPUs")
    ] = "float32",
    trust: TRUST = False,
) -> None:
    """Find the scheme that brings most within a budget of memory and time."""
    from rich.console import Console

    from ..choosing.eight_bits import drop_of
    from ..choosing.scheme_search import search as find
    from ..device.files import check_folder
    from ..reports.choice_tables import choice_table

    console = Console(stderr=True)
    budgets = _budgets(memory, latency)
    check_folder(output)
    measured, profiles = _measured(contributions, model, trust), [_records(path) for path in profile or []]
    known = len(measured.costs), len(measured.eight_bits)
    try:
        with progress_bar(console) as progress:
            result = find(measured, **budgets, target=target, profiles=profiles, frozen=frozen, progress=progress)
    finally:
        if (len(measured.costs), len(measured.eight_bits)) != known:
            measured.save(contributions)  # keep what was planned and trained for the next search
    result.scheme.save(output)
    Console().print(choice_table(result.choices, result.choice))
    planned, summed = mb_text(int(result.cost.memory)), mb_text(int(result.choice.memory))
    takes = f"{output}: takes {planned} beside the weights as planned ({summed} by the sum of its pieces)"
    console.print(
        f"{takes}, about {1e3 * result.seconds:.2f} ms a step (the {result.time_model})",
        highlight=False,
        soft_wrap=True,
    )
    if frozen != "float32":
        drop = drop_of(measured)
        console.print(
            "what eight bits cost is not in the gains: the analysis trained nothing that could be compared"
            if drop is None
            else f"eight bits cost {drop:.2f} points, measured on the head, and taken off the gains of their schemes",
            highlight=False,
            soft_wrap=True,
        )
    options = [] if memory is None else [f"--memory-budget {memory}"]
    if result.frozen != "float32":
        options.append(f"--frozen {result.frozen} --calibrate DATA")
    if options:
        console.print(f"compile it with {' '.join(options)}", highlight=False)


@app.command()
def report(
    contributions: CONTRIBUTIONS,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write")],
    scheme: Annotated[Path | None, typer.Option(help="The scheme that was chosen")] = None,
    model: Annotated[Path | None, typer.Option(help="The network, if it lies elsewhere now")] = None,
    memory: MEMORY = None,
    latency: LATENCY = None,
    target: TARGET = None,
    profile: PROFILES = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for the pictures as PNG files")] = None,
    trust: TRUST = False,
) -> None:
    """Draw contributions, costs and the chosen scheme into one HTML file."""
    from rich.console import Console

    from ..device.files import check_folder, make_folder
    from ..reports.page import write_report
    from ..schemes.scheme import Scheme

    check_folder(output)
    if pictures is not None:
        make_folder(pictures)
    write_report(
        _measured(contributions, model, trust),
        output,
        scheme=None if scheme is None else Scheme.load(scheme),
        **_budgets(memory, latency),
        target=target,
        profiles=[_records(path) for path in profile or []],
        pictures=pictures,
    )
    Console(stderr=True).print(f"{output}: written")


def _budgets(memory: str | None, latency: str | None) -> dict[str, float | None]:
    """Parse budgets into bytes and seconds."""
    from ..quantities import parse_bytes, parse_seconds

    return {
        "memory": None if memory is None else parse_bytes(memory),
        "seconds": None if latency is None else parse_seconds(latency),
    }


def _measured(path: Path, model: Path | None, trust: bool) -> Any:
    """Load contributions; ``model`` overrides the path of the network, and ``trust`` is for it."""
    from dataclasses import replace

    from ..choosing.contributions import Contributions

    contributions = Contributions.load(path)
    if (contributions.runs or contributions.kinds) and not contributions.finished:
        typer.echo(
            f"pock: warning: the analysis of '{path}' is not finished: 'pock analyze' goes on where it was interrupted",
            err=True,
        )
    network = contributions.task.model if model is None else str(model.resolve())
    return replace(contributions, task=replace(contributions.task, model=network, trust=trust))


def _records(path: Path) -> Any:
    """Read a profile that 'pock inspect --json' wrote."""
    from ..device.form import check_form, is_real
    from ..device.reading import read_json, reading

    form = {"kind": str, "flops": is_real, "bytes": is_real, "ms": is_real}
    with reading(PockError, f"'{path}' is no profile: write one by 'pock inspect PROGRAM --json FILE' ({{}})"):
        records = read_json(path)
        check_form(records, [form], "profile")
        return [{name: record[name] for name in form} for record in records]


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PockError(f"--ratios takes numbers with commas between, not '{text}'") from error
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise PockError(f"--ratios: a share of channels is in (0, 1], not {text}")
    return ratios
