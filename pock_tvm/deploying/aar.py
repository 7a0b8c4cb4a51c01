"""The layout of an AAR for Android: Kotlin, the native methods, and ``libpock.so``, linked without Android's NDK."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..device.memory import ALIGNMENT
from ..device.program import Program
from ..errors import PockError
from .maker import Network
from .network_code import Argument, arguments_of, given_arguments
from .standalone import objects_of
from .templates import ANDROID, filled, text_of, write_texts
from .toolchain import run_compiler, zig_command

FIXED = ("AndroidManifest.xml", "build.gradle.kts", "proguard.txt")
LIBRARY = "jni/arm64-v8a/libpock.so"
PAGE_BYTES = 16 * 1024
"""The largest pages that Android has."""
TARGET = ("-target", "aarch64-linux-android.21")
LINK = (
    "-m", "aarch64linux", "-shared", "-z", "defs", "-z", "now", "-z", f"max-page-size={PAGE_BYTES}", "--as-needed",
    "--gc-sections", "--hash-style=both",
)  # fmt: skip
EXPORTS = "{ global: pock_*; Java_pock_*; local: *; };"
"""Symbols that others find in the library, for the linker."""
LIBC = ("memcmp", "memcpy", "memmove", "memset", "strlen")
LIBM = re.findall(
    r"\w+",
    """
    acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs floor fma
    fmax fmin fmod hypot ldexp log log10 log1p log2 nearbyint nextafter pow rint round sin sinh sqrt tan tanh
    trunc
    """,
)
"""Functions of Android's libraries from version 5 on. A network links to stubs with the libraries' names, as with the
NDK, and finds the functions on the phone."""
KOTLIN = {
    "float32": ("FloatArray", "asFloatBuffer()."), "float64": ("DoubleArray", "asDoubleBuffer()."),
    "bool": ("ByteArray", "duplicate()."),
    **dict.fromkeys(("int8", "uint8"), ("ByteArray", "duplicate().")),
    **dict.fromkeys(("int16", "uint16"), ("ShortArray", "asShortBuffer().")),
    **dict.fromkeys(("int32", "uint32"), ("IntArray", "asIntBuffer().")),
    **dict.fromkeys(("int64", "uint64"), ("LongArray", "asLongBuffer().")),
}  # fmt: skip
"""Kotlin's arrays of elements, and the view of a buffer that takes them; unsigned numbers are given as their bits."""
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        as break class continue do else false for fun if in interface is null object package return super this throw
        true try typealias typeof val var when while
        """,
    )
)
MOST_BYTES = 2**31 - 1 - ALIGNMENT
"""Of a buffer of Java."""


def package(folder: Path, network: Network, kernels: Sequence[Path] | None) -> None:
    """Write ``android/`` into a bundle's folder; with kernels, link its library.

    Raises
    ------
    PockError
        The compiler fails, or the network is too large for Java's buffers.
    """
    program, plan, form = network.program, network.plan, network.form
    if max(plan.memory.size, len(plan.weights), form.nbytes) > MOST_BYTES:
        raise PockError(
            f"the network takes {plan.memory.size:,} bytes of memory, {len(plan.weights):,} of weights and "
            f"{form.nbytes:,} of state, and a buffer of Java holds {MOST_BYTES:,}: train fewer weights, or lower the "
            "batch"
        )
    place = folder / "android"
    linked = "linked here, against the names of Android's C library" if kernels else "**not linked**: see below"
    texts = {
        **{name: text_of(name, ANDROID) for name in FIXED},
        "kotlin/pock/Pock.kt": _kotlin(network),
        "pock_jni.c": _native_methods(program),
        "README.md": filled(
            "README.md", ANDROID, library=linked, step=", ".join(map(_name, given_arguments(program)))
        ),
    }  # fmt: skip
    write_texts(place, texts)
    (place / "assets").mkdir()
    (place / "assets" / "weights.bin").write_bytes(bytes(plan.weights))
    if kernels is not None:
        (place / LIBRARY).parent.mkdir(parents=True)
        _link(folder, kernels, place / LIBRARY)


def _link(folder: Path, kernels: Sequence[Path], library: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        objects = objects_of(folder, kernels, [*TARGET, "-ffunction-sections"], work, [folder / "android/pock_jni.c"])
        libm = [f"{each}{suffix}" for each in LIBM for suffix in ("", "f")]
        stubs = [_stub(work, "libc.so", LIBC), _stub(work, "libm.so", libm)]
        (work / "exports").write_text(EXPORTS)
        flags = [*LINK, "-soname", library.name, "--version-script", str(work / "exports")]
        _lld(flags, [*objects, *stubs], library)


def _stub(folder: Path, name: str, functions: Sequence[str]) -> Path:
    """Link a library that has only the names of functions."""
    source, made, library = folder / f"{name}.c", folder / f"{name}.o", folder / name
    source.write_text("".join(f"void {each}(void) {{}}\n" for each in functions))
    flags = [*TARGET, "-w", "-fno-builtin", "-fPIC"]
    run_compiler([*zig_command(), *flags, "-c", str(source), "-o", str(made)])
    _lld(["-m", "aarch64linux", "-shared", "-soname", name], [made], library)
    return library


def _lld(flags: Sequence[str], files: Sequence[Path], library: Path) -> None:
    run_compiler([*zig_command("ld.lld"), *flags, *map(str, files), "-o", str(library)])


def _native_methods(program: Program) -> str:
    arguments, given = arguments_of(program), given_arguments(program)

    def starts(each: Sequence[Argument]) -> str:
        return "".join(f", start(env, {one.variable}_buffer, {one.nbytes})" for one in each)

    def parameters(each: Sequence[Argument]) -> str:
        return "".join(f", void *{one.variable}_buffer" for one in each)

    both = [*arguments.inputs, *arguments.outputs]
    return filled(
        "pock_jni.c", ANDROID, step=parameters(given), step_starts=starts(given),
        predict=parameters(both), predict_starts=starts(both),
    )  # fmt: skip


def _kotlin(network: Network) -> str:
    program, plan, form = network.program, network.plan, network.form
    arguments, given = arguments_of(program), given_arguments(program)
    both = [*arguments.inputs, *arguments.outputs]
    every = {each.variable: each for each in (*given, *arguments.outputs)}.values()
    return filled(
        "Pock.kt",
        ANDROID,
        memory=plan.memory.size,
        weights=len(plan.weights),
        state=form.nbytes,
        alignment=ALIGNMENT,
        buffers="\n".join(f"    private val {_buffer(each)} = direct({each.nbytes})" for each in every),
        step_fills="\n".join(map(_fill, given)),
        predict_fills="\n".join([*map(_fill, arguments.inputs), *map(_count, arguments.outputs)]),
        predict_takes="\n".join(
            f"        {_buffer(each)}.{KOTLIN[each.dtype][1]}get({_name(each)})" for each in arguments.outputs
        ),
        **_lists("step", given),
        **_lists("predict", both),
    )


def _lists(name: str, arguments: Sequence[Argument]) -> dict[str, str]:
    """Lists of a function's arguments, as the template names them."""
    return {
        f"{name}_shapes": ", ".join(f"{_name(each)} {_shape(each)}" for each in arguments),
        f"{name}_arrays": ", ".join(f"{_name(each)}: {KOTLIN[each.dtype][0]}" for each in arguments),
        f"{name}_buffers": ", ".join(map(_buffer, arguments)),
        f"{name}_given": ", ".join(f"{_name(each)}: ByteBuffer" for each in arguments),
        f"{name}_checked": "\n".join(
            f'                given("{each.variable}", {_name(each)}, {each.nbytes}, {each.nbytes // each.count}),'
            for each in arguments
        ),
    }


def _fill(each: Argument) -> str:
    return f"{_count(each)}\n        {_buffer(each)}.{KOTLIN[each.dtype][1]}put({_name(each)})"


def _count(each: Argument) -> str:
    return f'        counted("{each.variable}", {_name(each)}.size, {each.count})'


def _buffer(each: Argument) -> str:
    return f"{each.variable}Buffer"


def _name(each: Argument) -> str:
    return f"`{each.variable}`" if each.variable in KEYWORDS or not each.variable.strip("_") else each.variable


def _shape(each: Argument) -> str:
    return "x".join(map(str, each.shape)) or "scalar"
