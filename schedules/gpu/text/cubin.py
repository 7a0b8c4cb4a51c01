"""Machine code of CUDA kernels: by NVRTC 12, which knows all GPUs since sm_50, else by the ``nvcc`` on the PATH."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADERS = {
    "cuda/std/cstdint": """
namespace cuda { namespace std {
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
}}""",
    "cuda/std/type_traits": """
namespace cuda { namespace std {
template <class A, class B> struct is_same;
template <class A, class B> extern const bool is_same_v;
template <class T> struct is_integral;
template <class T> struct is_signed;
template <class T> struct is_unsigned;
template <class T> struct is_floating_point;
template <bool B, class T = void> struct enable_if;
template <bool B, class T, class F> struct conditional;
}}""",
}
"""What the texts of TVM's generator include of NVIDIA's C++ library. That takes 1.3 s a kernel to read, and of these
names only integers are used."""
WHEELS = ("nvidia.cuda_runtime", "nvidia.cuda_cccl", "nvidia.cuda_nvcc")
"""Packages with the headers of 16-bit numbers and of matrix units."""
NVRTC = ("libnvrtc.so.12", "nvrtc64_120_0.dll")
"""File of the library, by system."""


SPILLS = re.compile(r"[1-9]\d* bytes spill stores")
"""Line of ``ptxas`` about a function that spills registers."""


class NoCudaCompilerError(Exception):
    """There is neither NVRTC 12 nor ``nvcc``."""


def machine_code(text: str, architecture: str) -> bytes:
    """Compile the text of a kernel: to a cubin for ``sm_87`` and the like, to PTX for ``compute_75`` and the like.

    Left to choose, the compiler spills a few registers of some kernels to let a core hold more blocks. Such a text is
    compiled again (:func:`with_one_block`).

    Raises
    ------
    NoCudaCompilerError
        There is neither NVRTC 12 nor ``nvcc``.
    ValueError
        The compiler refuses the text, or the architecture.
    """
    code, said = _compiled(text, architecture)
    return _compiled(with_one_block(text), architecture)[0] if SPILLS.search(said) else code


def with_one_block(text: str) -> str:
    """Let threads have as many registers as they like: a core need hold no more than one block."""
    return re.sub(r"__launch_bounds__\((\d+)\)", r"__launch_bounds__(\1, 1)", text)


def _compiled(text: str, architecture: str) -> tuple[bytes, str]:
    """Return the code, and what the compiler says of registers."""
    check_compiler()
    library = nvrtc()
    return _by_nvcc(text, architecture) if library is None else _by_nvrtc(library, text, architecture)


def check_compiler() -> None:
    """Raise :class:`NoCudaCompilerError` if there is neither NVRTC 12 nor ``nvcc``."""
    if nvrtc() is None and shutil.which("nvcc") is None:
        raise NoCudaCompilerError(
            "kernels for CUDA need a compiler: pip install 'pock-tvm[cuda]', or put CUDA's nvcc on the PATH"
        )


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """Load NVRTC 12, of NVIDIA's wheel or the system's; None without one."""
    folders = [folder / part for folder in _folders("nvidia.cuda_nvrtc") for part in ("lib", "bin")]
    wheel = [str(folder / name) for folder in folders for name in NVRTC if (folder / name).exists()]
    for name in [*wheel, *NVRTC]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _by_nvrtc(library: ctypes.CDLL, text: str, architecture: str) -> tuple[bytes, str]:
    def strings(values: list[str]) -> Any:
        return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))

    program = ctypes.c_void_p()
    names, contents = strings(list(HEADERS)), strings(list(HEADERS.values()))
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", len(HEADERS), contents, names)
    try:
        includes = [f"--include-path={path}" for wheel in WHEELS for path in _includes(wheel)]
        options = strings([f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v", *includes])
        failed = library.nvrtcCompileProgram(program, len(options), options)
        said = _result(library, program, "ProgramLog").decode()
        if failed:
            raise ValueError(_first_error(said))
        return _result(library, program, "CUBIN" if architecture.startswith("sm_") else "PTX"), said
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _result(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, found)
    return found.raw


def _by_nvcc(text: str, architecture: str) -> tuple[bytes, str]:
    kind = "cubin" if architecture.startswith("sm_") else "ptx"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.cu"), Path(folder, f"kernel.{kind}")
        source.write_text(text)
        options = [f"--{kind}", f"-arch={architecture}", "--std=c++17", "-Xptxas", "-v"]
        command = ["nvcc", *options, str(source), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(_first_error(done.stderr))
        return binary.read_bytes() + b"\0" * (kind == "ptx"), done.stderr  # the driver reads a string


def _first_error(log: str) -> str:
    """Return the line of a compiler's log that says what is wrong."""
    lines = [line.strip() for line in log.replace("\0", "").splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no reason was given")


def _includes(wheel: str) -> Iterator[Path]:
    return (folder / "include" for folder in _folders(wheel) if (folder / "include").exists())


def _folders(package: str) -> list[Path]:
    """Return the folders of a package that need not be there."""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return []
    return [Path(place) for place in (found.submodule_search_locations or [])] if found else []
