"""The command that tunes kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import PROGRAM, SEED, SIGNATURE, TRUST, app, mb_text
from .connecting import ANY_TRACKER, KEY, SEVERAL_RPC, TIMEOUT_S, endpoints

if TYPE_CHECKING:
    from ..device.program import Program
    from ..tuning.search import Progress


@app.command()
def tune(
    program: PROGRAM,
    database: Annotated[Path, typer.Option(help="The folder of tuning records; made if there is none")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in the database after which the search ends")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="How long to search, such as 30m; 20m if there is no --trials")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the tuned program")] = None,
    strategy: Annotated[str, typer.Option(help="evolutionary, random, or one of another package")] = "evolutionary",
    cost_model: Annotated[
        str | None,
        typer.Option(help="xgboost (needs the extra tune), none (the default for random), or one of another package"),
    ] = None,
    space: Annotated[str, typer.Option(help="own, metaschedule, or one of another package")] = "own",
    measure: Annotated[
        str, typer.Option(help="device; static (estimates where no device is at hand); or one of another package")
    ] = "device",
    seed: SEED = 0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on with our own part if one of another package fails")
    ] = False,
    rpc: SEVERAL_RPC = None,
    tracker: ANY_TRACKER = None,
    key: KEY = "",
    timeout: Annotated[
        float, typer.Option(help="Seconds that a call of a device may take, and that missing devices are waited for")
    ] = TIMEOUT_S,
    model: Annotated[
        Path | None,
        typer.Option(help="The network that the program was compiled from: tunes choices above kernels, too"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="With --model: most memory that a step may need, such as 64MB; by default as it needs now"),
    ] = None,
    trust: TRUST = False,
    explain: Annotated[
        str | None,
        typer.Option(help="Search nothing: tell of the search for this kernel (the beginning of its name will do)"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --explain: the picture of its progress to write")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Search nothing: write all trials of the database, with features, to this Parquet file"),
    ] = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Tune the schedules of a program's kernels, on this machine or on devices of one kind over TVM's RPC.

    Trials are kept in the database: a search that was interrupted goes on where it was. What is faster within whole
    steps is chosen: 'pock compile --database' takes it, and -o writes the program with it.

    Devices (--rpc, several times, or all that --tracker has of a --key) measure in parallel what is built here. Each
    runs examples/remote/serve.py with --measure. One that goes costs what it was measuring at most, and is taken back
    when it returns.
    """
    from rich.console import Console

    from ..device.files import check_folder
    from ..device.program import Program
    from ..frontend import load_model
    from ..quantities import parse_seconds
    from ..reports.tables import tuning_table
    from ..tuning.static.measure import STATIC
    from ..tuning.tune import tune as tune_program

    if output is not None:
        check_folder(output)
    seconds = None if time is None else parse_seconds(time)
    loaded = Program.load(program, signature=require_signature)
    devices = endpoints(rpc or [], tracker, key, timeout)
    if explain is not None:
        _explain(loaded, database, explain, plot)
        return
    if export is not None:
        _export(loaded, database, export)
        return
    console = Console(stderr=True)
    shapes = {spec["name"]: tuple(spec["shape"]) for spec in loaded.manifest["inputs"]}
    network = None if model is None else load_model(model, shapes=shapes, trust=trust)
    try:
        with _shown(console, is_estimate=measure == STATIC) as show:
            result = tune_program(
                loaded,
                database,
                trials=trials,
                seconds=seconds,
                strategy=strategy,
                cost_model=cost_model,
                space=space,
                measure=measure,
                seed=seed,
                keep_going=keep_going,
                devices=devices,
                progress=show,
                model=network,
                memory=memory,
            )
    except KeyboardInterrupt:
        console.print(
            f"interrupted: the trials are kept in '{database}', and the same command goes on from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    Console().print(tuning_table(result))
    if model is not None:
        chosen = ", ".join(f"{name} = {option}" for name, option in result.choices.items())
        console.print(f"choices above kernels: {f'{chosen} ({result.choices_gain:.2f}x)' if chosen else 'defaults'}")
    step = f"a step takes {1e3 * result.after:.2f} ms, {1e3 * result.before:.2f} by default ({result.gain:.2f}x)"
    if result.estimated:
        step = f"by the model's estimate a step takes {result.after:.2f} of the default's time; it may be slower"
    console.print(f"{step}; {result.trials} trials in '{database}'", highlight=False, soft_wrap=True)
    if output is not None:
        result.program.save(output)
        arena = mb_text(result.program.memory()["arena"])
        console.print(f"{output}: arena {arena}", highlight=False, soft_wrap=True)
    else:
        console.print(f"compile with --database {database} to have it", highlight=False, soft_wrap=True)


def _explain(program: Program, folder: Path, kernel: str, plot: Path | None) -> None:
    """Print what a database tells of the search for a kernel's schedule, and draw its progress."""
    from rich.console import Console
    from rich.syntax import Syntax

    from ..compiler.database import Database
    from ..compiler.rebuild import target_of
    from ..device.files import check_folder
    from ..reports.tuning_plots import draw_curves
    from ..tuning.cost_model import XGBoostModel
    from ..tuning.explain import explain

    if plot is not None:
        check_folder(plot)
    target, console = target_of(program), Console()
    with Console(stderr=True).status("walking the space"):
        found = explain(program, Database(folder, target, must_exist=True), kernel, XGBoostModel(target))
    text = Syntax(found.code, "python", background_color="default").highlight(found.code)
    console.print(text, soft_wrap=True)  # whole lines, in whatever they are piped into
    failed = sum(trial.failure is not None for trial in found.trials)
    more = "" if found.is_whole else "more than "
    older = f"; {found.older} more by other versions of the schedules" if found.older else ""
    lines = [found.name, f"{more}{found.points} schedules, {len(found.trials)} of them tried, {failed} failed{older}"]
    if found.best is not None and found.best.seconds is not None:
        decisions = ", ".join(f"{name} = {option}" for name, option in found.best.decisions.items())
        lines.append(f"best: {1e6 * found.best.seconds:.1f} us, {found.best.speedup:.2f}x the default, by {decisions}")
    if found.model_correlation is not None:
        lines.append(f"cost model: rank correlation {found.model_correlation:.2f} on trials that it has not seen")
    if plot is not None and not found.trials:
        lines.append(f"{plot} is not written: there is nothing to draw before 'pock tune' has tried schedules")
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    if plot is not None and found.trials:
        draw_curves({"best so far": [found.curve]}, found.name, "times as fast as the default", plot)


def _export(program: Program, folder: Path, path: Path) -> None:
    """Write the trials of a database as a table."""
    from rich.console import Console

    from ..compiler.database import Database
    from ..compiler.rebuild import target_of
    from ..device.files import check_folder
    from ..tuning.trial_table import trial_rows, write_table

    check_folder(path)
    with Console(stderr=True).status("taking features"):
        rows = list(trial_rows(Database(folder, target_of(program), must_exist=True)))
        write_table(rows, path)
    bare, lack = sum(not row["features"] for row in rows), ""
    if bare:
        lack = (
            f", {bare} without features: they fit no schedule of this version, or their kernel is not in the database"
        )
    Console().print(f"{path}: {len(rows)} trials{lack}", highlight=False, soft_wrap=True)


@contextmanager
def _shown(console: Any, *, is_estimate: bool) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that shows the state of a search in one line."""
    about = "by estimate" if is_estimate else "about"
    with console.status("estimating kernels" if is_estimate else "measuring the kernels of a step") as status:

        def show(state: Progress) -> None:
            left = "" if state.seconds_left is None else f", {state.seconds_left / 60:.1f} min left"
            failed = f" ({state.failures} failed)" if state.failures else ""
            status.update(
                f"{state.trials} trials{failed}, step {about} {state.gain:.2f}x{left}: "
                f"{state.kernel:.40} {state.speedup:.2f}x"
            )
            if state.seconds_left == 0 and not is_estimate:
                status.update("comparing steps")

        yield show
