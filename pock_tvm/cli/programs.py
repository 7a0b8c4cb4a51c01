"""Commands that compile programs and run them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import OptionError
from .common import (
    ALLOW_DROP,
    BATCH,
    BATCH_NORM,
    CHECKPOINT,
    DATA,
    DEVICE,
    FLASH,
    LOSS,
    MEAN,
    MODEL,
    PROGRAM,
    RAM,
    SCHEME,
    SHAPE,
    SIGNATURE,
    STD,
    TARGET,
    THREADS,
    TRUST,
    app,
    as_options,
    check_text,
    eight_bits_text,
    mb_text,
    named_scheme,
    optimizer_of,
    preprocessing_for,
    restored,
    shapes_of,
)
from .connecting import ANY_TRACKER, KEY, RPC, TIMEOUT, TIMEOUT_S, endpoint


@app.command("compile")
def compile_(
    model: MODEL,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the program")],
    scheme: SCHEME = "full",
    loss: LOSS = "cross_entropy",
    optimizer: Annotated[
        str, typer.Option(help="sgd, adam or adamw, with options: sgd:momentum=0.9,weight_decay=1e-4")
    ] = "sgd:momentum=0.9",
    batch: BATCH = None,
    shape: SHAPE = None,
    target: TARGET = "host",
    batch_norm: BATCH_NORM = None,
    dropout: Annotated[
        bool | None,
        typer.Option("--dropout/--no-dropout", help="Drop values in training, or none; as the network was exported"),
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Steps that share one update")] = 1,
    micro_batches: Annotated[
        int | None, typer.Option(help="Parts of the batch that a step runs one after the other; as a budget needs")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of all gradients together")] = None,
    guard: Annotated[
        str,
        typer.Option(
            help="Against NaN and infinities: update checks before each update, step before the first of a step, or off"
        ),
    ] = "update",
    precision: Annotated[
        str, typer.Option(help="On GPUs: store values and multiply in bfloat16 or float16, instead of float32")
    ] = "float32",
    frozen: Annotated[
        str,
        typer.Option(help="On CPUs: compute layers before the first trained parameter in int8, instead of float32"),
    ] = "float32",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Samples to take the ranges of int8 from: a folder or .npz file, as for training"),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="With int8: how far outputs may be from those in float, such as 0.05; sensitive layers stay float"
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Most memory beside the weights, such as 64MB (microcontrollers: all memory): recompute, or run in "
            "micro-batches, where it takes more"
        ),
    ] = None,
    copies: Annotated[
        int,
        typer.Option(help="Copies of a frozen weight: with 2, backward products have their own", min=1, max=2),
    ] = 1,
    dump: Annotated[Path | None, typer.Option(help="A folder for the module after each phase")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Take a step beside PyTorch, and refuse a program that differs")
    ] = True,
    slim: Annotated[
        bool, typer.Option("--slim", help="Leave out what only bundles for other devices are printed from")
    ] = False,
    flash: FLASH = None,
    ram: RAM = None,
    database: Annotated[
        Path | None, typer.Option(help="A folder of tuning records, whose schedules kernels take (pock tune)")
    ] = None,
    trust: TRUST = False,
) -> None:
    """Compile a network into a training program."""
    from rich.console import Console

    from ..compiler.driver import compile as compile_program
    from ..compiler.footprint.needs import is_freestanding, needs_of
    from ..device.files import check_folder
    from ..frontend import load_model
    from ..training.beside import Preprocessing, classes_beside
    from ..training.data import open_data, shuffled_batches

    check_folder(output)
    console = Console(stderr=True)
    preprocessing, classes = Preprocessing.beside(model), classes_beside(model)
    with console.status(f"reading {model.name}"):
        imported = load_model(model, batch=batch, shapes=shapes_of(shape or []), trust=trust)
    samples = None
    if calibrate is not None:
        specs = [vars(spec) for spec in imported.inputs]
        data = open_data(calibrate, specs, preprocessing or Preprocessing(), has_target=False)
        samples = shuffled_batches(data, specs[0]["shape"][0])
    with console.status("compiling"):
        program = compile_program(
            imported,
            scheme=named_scheme(scheme, imported),
            loss=loss,
            optimizer=optimizer_of(optimizer),
            target=target,
            batch_norm=batch_norm,
            dropout=dropout,
            accumulate=accumulate,
            micro_batches=micro_batches,
            clip_norm=clip_norm,
            guard=guard,
            precision=precision,
            frozen=frozen,
            calibrate_with=samples,
            max_drop=max_drop,
            memory_budget=memory_budget,
            copies=copies,
            dump=dump,
            check=None if check else False,
            flash=flash,
            ram=ram,
            database=database,
        )
    if preprocessing is not None:
        program.manifest["preprocessing"] = preprocessing.to_json()
    if classes is not None:
        program.manifest["classes"] = classes
    program.save(output, slim=slim)
    memory, parts = program.memory(), program.manifest["options"]["micro_batches"]
    text = f"{output}: {len(program.trained)} parameters trained, arena {mb_text(memory['arena'])}"
    console.print(text if parts == 1 else f"{text}, in {parts} micro-batches")
    if is_freestanding(program.manifest["target"]["triple"]):
        console.print(f"needs {needs_of(program)}", highlight=False)
    console.print(check_text(program.manifest["check"]))
    if program.manifest["quantized"] is not None:
        console.print(eight_bits_text(program.manifest["quantized"]), highlight=False)


@app.command()
def check(
    model: MODEL,
    scheme: SCHEME = "full",
    loss: LOSS = "cross_entropy",
    batch: BATCH = None,
    shape: SHAPE = None,
    target: TARGET = "host",
    batch_norm: BATCH_NORM = None,
    trust: TRUST = False,
) -> None:
    """List everything that stands between a network and its program; exit code 2 if anything does."""
    from rich.console import Console

    from ..compiler.obstacles import check as obstacles_of
    from ..reports.tables import obstacle_table

    with Console(stderr=True).status(f"checking {model.name}"):
        found = obstacles_of(
            model,
            scheme=partial(named_scheme, scheme),
            loss=loss,
            batch=batch,
            shapes=shapes_of(shape or []),
            target=target,
            batch_norm=batch_norm,
            trust=trust,
        )
    console = Console()
    if found:
        console.print(obstacle_table(found, as_options))
    if any(each.blocking for each in found):
        raise typer.Exit(2)
    console.print(f"nothing stands in the way of compiling {model.name}", highlight=False)


@app.command()
def targets() -> None:
    """List the machines that have a short name: what is known of them, and how far programs for them were tried."""
    from rich.console import Console

    from ..reports.target_table import gpu_traits_table, target_table, traits_table

    Console().print(target_table(), traits_table(), gpu_traits_table())


@app.command("eval")
def evaluate(
    program: PROGRAM,
    data: DATA,
    checkpoint: CHECKPOINT = None,
    allow_drop: ALLOW_DROP = False,
    mean: MEAN = None,
    std: STD = None,
    threads: THREADS = None,
    device: DEVICE = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Measure loss and accuracy on data."""
    from rich.console import Console

    from ..device.program import Program
    from ..device.trainer import Trainer
    from ..training.data import evaluation_batches, open_samples
    from ..training.progress import Evaluation

    trainer = Trainer(Program.load(program, signature=require_signature), threads=threads, device=device)
    if checkpoint is not None:
        restored(trainer, checkpoint, allow_drop=allow_drop)
    manifest, preprocessing = trainer.program.manifest, preprocessing_for(trainer, data, mean, std)
    samples = open_samples(manifest, data, preprocessing, classes=trainer.notes.get("classes"))
    result = trainer.evaluate(evaluation_batches(samples, manifest["inputs"][0]["shape"][0]))
    Console().print(str(Evaluation.of(result)))


@app.command()
def inspect(
    program: PROGRAM,
    plot: Annotated[Path | None, typer.Option(help="Draw the arena over time: the picture to write")] = None,
    profile: Annotated[bool, typer.Option(help="Run a step, and show the time of each kernel")] = False,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="Write the profile: what 'pock search --profile' reads")
    ] = None,
    rpc: RPC = None,
    tracker: ANY_TRACKER = None,
    key: KEY = "",
    timeout: TIMEOUT = TIMEOUT_S,
    threads: THREADS = None,
    device: DEVICE = None,
    require_signature: SIGNATURE = None,
) -> None:
    """Show what a program trains, what it costs and what it holds in memory.

    With --rpc or --tracker the step of --profile runs on a device, over TVM's RPC (pock run).
    """
    from rich.console import Console

    from ..device.files import check_folder, replacing
    from ..device.program import Program
    from ..reports.tables import kernel_table, layer_table, memory_table, schedule_table, summary

    for path in filter(None, (plot, json_output)):
        check_folder(path)
    profile = profile or json_output is not None
    if (rpc or tracker) and not profile:
        raise OptionError("a device runs a step for --profile or --json: give one of them")
    loaded = Program.load(program, signature=require_signature)
    console = Console()
    if plot is not None:
        from ..reports.program_plots import draw_memory

        draw_memory(loaded, plot)
    if profile:
        from ..device.profile import clock_of, example
        from ..device.profile import profile as profile_step
        from ..device.trainer import Trainer

        if rpc or tracker:
            from ..deploying.remote import RemoteTrainer

            trainer: Trainer = RemoteTrainer(loaded, endpoint(rpc, tracker, key, timeout).connect(), threads=threads)
        else:
            trainer = Trainer(loaded, threads=threads, device=device)
        records = profile_step(trainer, *example(loaded))
        console.print(kernel_table(records))
        console.print(f"timed by {clock_of(trainer)}", markup=False)
        if json_output is not None:
            with replacing(json_output) as file:
                file.write(json.dumps(records, indent=1).encode())
        return
    console.print(summary(loaded), markup=False)
    console.print(layer_table(loaded))
    console.print(schedule_table(loaded))
    console.print(memory_table(loaded))
    if loaded.manifest.get("quantized") is not None:
        console.print(eight_bits_text(loaded.manifest["quantized"]), highlight=False, soft_wrap=True)


@app.command()
def export(
    program: PROGRAM,
    weights: Annotated[Path, typer.Option(help="The safetensors file to write")],
    checkpoint: CHECKPOINT = None,
    allow_drop: ALLOW_DROP = False,
    require_signature: SIGNATURE = None,
) -> None:
    """Write the weights under PyTorch's names, for PyTorch to load."""
    import numpy as np
    import safetensors.numpy

    from ..device.files import check_folder, replacing
    from ..device.program import Program
    from ..device.trainer import Trainer

    check_folder(weights)
    trainer = Trainer(Program.load(program, signature=require_signature))
    if checkpoint is not None:
        restored(trainer, checkpoint, allow_drop=allow_drop)
    arrays = {name: np.asarray(array, order="C") for name, array in trainer.weights().items()}
    with replacing(weights) as file:
        file.write(safetensors.numpy.save(arrays))


@app.command()
def sign(
    program: PROGRAM,
    key: Annotated[Path, typer.Option(help="A private Ed25519 key: ssh-keygen -t ed25519 -N '' -f KEY makes one")],
) -> None:
    """Sign a program, for devices that take signed ones only (--require-signature KEY.pub)."""
    from ..device.container import sign_container

    sign_container(program, key)


@app.command()
def demo() -> None:
    """Pretrain a small network on digits, then personalise it to a user whose digits look different."""
    from .demo import run

    run()
