"""A Swift package for iOS: an XCFramework with the static library, and the network as a class."""

from __future__ import annotations

import plistlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..device.memory import ALIGNMENT
from .maker import Network
from .network_code import Argument, arguments_of, given_arguments
from .standalone import objects_of
from .templates import IOS, filled, text_of, write_texts
from .toolchain import run_compiler, zig_command

SLICE, LIBRARY = "ios-arm64", "libpock.a"
TARGET = ("-target", "aarch64-ios.14.0")
INFO = {
    "AvailableLibraries": [
        {
            "BinaryPath": LIBRARY,
            "HeadersPath": "Headers",
            "LibraryIdentifier": SLICE,
            "LibraryPath": LIBRARY,
            "SupportedArchitectures": ["arm64"],
            "SupportedPlatform": "ios",
        }
    ],
    "CFBundlePackageType": "XFWK",
    "XCFrameworkFormatVersion": "1.0",
}
SWIFT = {
    "float32": "Float", "float64": "Double", "bool": "UInt8",
    **{f"{kind.lower()}{bits}": f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""Swift's types of elements."""
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        Any as associatedtype break case catch class continue default defer deinit do else enum extension fallthrough
        false fileprivate for func guard if import in init inout internal is let nil operator precedencegroup private
        protocol public repeat rethrows return self Self static struct subscript super switch throw throws true try
        typealias var where while _
        """,
    )
)


def package(folder: Path, network: Network, kernels: Sequence[Path] | None) -> None:
    """Write ``ios/`` into a bundle's folder; with kernels, make its static library.

    Raises
    ------
    PockError
        The compiler fails.
    """
    program, plan, form = network.program, network.plan, network.form
    place, arguments, given = folder / "ios", arguments_of(program), given_arguments(program)
    framework, sources = "CPock.xcframework", "Sources/Pock"
    headers = f"{framework}/{SLICE}/Headers"
    missing = "" if kernels else " (**missing**: deploy it without `--no-build`)"
    named = ", ".join(f"{each.variable}: {_name(each)}" for each in given)
    texts = {
        f"{headers}/pock.h": (folder / "pock.h").read_text(),
        f"{headers}/module.modulemap": text_of("module.modulemap", IOS),
        "Package.swift": text_of("Package.swift", IOS),
        f"{sources}/Pock.swift": filled(
            "Pock.swift", IOS, memory=plan.memory.size, weights=len(plan.weights), state=form.nbytes,
            alignment=ALIGNMENT, **_lists("step", given, ()),
            **_lists("predict", arguments.inputs, arguments.outputs),
        ),
        "README.md": filled("README.md", IOS, library=missing, step=named),
    }  # fmt: skip
    write_texts(place, texts)
    (place / framework / "Info.plist").write_bytes(plistlib.dumps(INFO))
    (place / sources / "weights.bin").write_bytes(bytes(plan.weights))
    if kernels is not None:
        _archive(folder, kernels, place / framework / SLICE / LIBRARY)


def _archive(folder: Path, kernels: Sequence[Path], library: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        objects = objects_of(folder, kernels, TARGET, Path(name))
        run_compiler([*zig_command("ar"), "rcs", str(library), *map(str, objects)])


def _lists(name: str, inputs: Sequence[Argument], outputs: Sequence[Argument]) -> dict[str, str]:
    """Lists of a function's arguments, as the template names them."""
    every = [*inputs, *outputs]
    parameters = [f"{_name(each)}: {'inout ' * (each in outputs)}[{SWIFT[each.dtype]}]" for each in every]
    return {
        name: ", ".join(parameters),
        f"{name}_shapes": ", ".join(f"{_name(each)} {'x'.join(map(str, each.shape)) or 'scalar'}" for each in every),
        f"{name}_checks": "\n".join(
            f'        try self.counted("{each.variable}", {_name(each)}.count, {each.count})' for each in every
        ),
        f"{name}_names": ", ".join(f"{'&' * (each in outputs)}{_name(each)}" for each in every),
    }


def _name(each: Argument) -> str:
    return f"`{each.variable}`" if each.variable in KEYWORDS else each.variable
