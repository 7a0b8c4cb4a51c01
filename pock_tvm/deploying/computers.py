"""Bundles for computers: a shared library, a program that trains on a CSV file, a wrapper for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..compiler.footprint.needs import limits_of
from ..device.program import Program
from ..errors import PockError
from .maker import Maker, Network, Options
from .network_code import Argument, arguments_of, given_arguments
from .templates import filled, text_of
from .toolchain import toolchain_for


class ComputerMaker(Maker):
    """Maker of bundles for computers."""

    def __init__(self, program: Program, options: Options) -> None:
        check_system(program, options)
        triple = program.manifest["target"]["triple"]
        self._toolchain = toolchain_for(triple, options.cc) if options.build else None
        self._threads, self.embeds_weights = options.threads, options.embed_weights

    def texts(self, network: Network) -> dict[str, str]:
        """Return ``main.c``, ``net.py`` and what builds them."""
        return texts_for_systems(network)

    def make(self, network: Network, folder: Path, kernels: Sequence[Path]) -> None:
        """Build the shared library and the program, by the toolchain."""
        if self._toolchain is not None:
            self._toolchain.build(folder, kernels, self._threads, embedded=self.embeds_weights)

    def remarks(self, network: Network) -> list[str]:
        """Return where to read on."""
        return ["see its README.md"]


def check_system(program: Program, options: Options) -> None:
    """Refuse what only a device without a system takes.

    Raises
    ------
    PockError
        Memories or samples are given.
    """
    target = program.manifest["target"]
    limits_of(target, options.flash, options.ram)
    if options.samples is not None:
        raise PockError(f"{target['triple']} reads its samples from a file: leave samples out")


def texts_for_systems(network: Network) -> dict[str, str]:
    """Return the files that a system builds and runs: ``main.c``, ``net.py``, … They know the network's arguments."""
    program, plan, form = network.program, network.plan, network.form
    arguments, given, manifest = arguments_of(program), given_arguments(program), program.manifest
    batch = arguments.inputs[0].shape[:1]
    has_samples = bool(batch) and all(each.shape[:1] == batch for each in given)
    rows = batch[0] if has_samples else 1

    def described(each: Argument) -> str:
        return repr((each.name, each.shape, each.dtype))

    main = filled(
        "main.c",
        rows=rows,
        declarations="\n".join(f"static {each.c_type} batch_{each.variable}[{each.count}];" for each in given),
        reads="\n".join(
            f"  for (size_t i = 0; i < {each.count // rows}; i++)\n"
            f"    if (!number(&at, &value)) return 0;\n"
            f"    else batch_{each.variable}[row * {each.count // rows} + i] = ({each.c_type})value;"
            for each in given
        ),
        names=", ".join(f"batch_{each.variable}" for each in given),
        columns=" then ".join(f"{each.count // rows} of {each.variable}" for each in given),
    )
    wrapper = filled(
        "net.py",
        inputs="".join(f"    {described(each)},\n" for each in arguments.inputs),
        target=described(arguments.target) if arguments.target else "None",
        outputs="".join(f"    {described(each)},\n" for each in arguments.outputs),
        memory=plan.memory.size,
        weights=len(plan.weights),
        state=form.nbytes,
    )
    readme = filled(
        "README.md",
        triple=manifest["target"]["triple"],
        memory=f"{plan.memory.size:,}",
        weights=f"{len(plan.weights):,}",
        state=f"{form.nbytes:,}",
        columns=" then ".join(f"{each.count // rows} of `{each.variable}`" for each in given),
        rows=rows,
    )
    return {"main.c": main, "net.py": wrapper, "README.md": readme, "CMakeLists.txt": text_of("CMakeLists.txt")}
