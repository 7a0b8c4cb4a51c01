"""Machines by short name: ``pi4``, ``m1``, ``cortex-m7``, ``jetson-orin``, …"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from schedules.gpu.traits import PTX

KIB, MIB = 2**10, 2**20


class Verified(StrEnum):
    """How far programs for a machine were tried, best first."""

    HARDWARE = "ran on hardware"
    EMULATOR = "ran in an emulator"
    LINKED = "linked in the vendor's format"
    GENERATED = "source generated"


@dataclass(frozen=True, kw_only=True)
class Machine(ABC):
    """A machine that programs are compiled for."""

    title: str
    """Name that people know it by."""
    verified: Verified
    """How far programs for it were tried."""

    @abstractmethod
    def target(self) -> dict[str, Any]:
        """Return TVM's target."""


@dataclass(frozen=True, kw_only=True)
class Cpu(Machine):
    """A CPU, as LLVM and the schedules know it.

    Triples have four parts (Apple's three): LLVM takes shorter ones for soft float, or for a system without a runtime.
    """

    triple: str
    """LLVM's triple."""
    cpu: str
    """LLVM's name of the core; ``schedules/cpu/cores.py`` has its model."""
    features: tuple[str, ...] = ()
    """LLVM's features beyond those of ``cpu``."""
    options: tuple[tuple[str, str | int], ...] = ()
    """Further attributes of TVM's target, such as those of the calling convention."""
    cores: int = 1
    """Cores that kernels run on; of two kinds of cores, the fast ones."""
    flash_bytes: int | None = None
    """Flash of a microcontroller, in bytes. None: there is a file system."""
    ram_bytes: int | None = None
    """RAM of a microcontroller, in bytes. None: an operating system shares it out."""

    def target(self) -> dict[str, Any]:
        """Return TVM's target."""
        found: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "num-cores": self.cores}
        if self.features:
            found["mattr"] = list(self.features)
        return found | dict(self.options)


@dataclass(frozen=True, kw_only=True)
class Gpu(Machine):
    """A GPU, as TVM and the schedules know it."""

    dialect: str
    """Language of its kernels: one of ``schedules.gpu.traits.DIALECTS``."""
    architecture: str = ""
    """CUDA's name of what kernels are compiled for, ``sm_87``."""
    is_oldest: bool = False
    """Whether kernels stay PTX, which a driver compiles for any GPU from ``architecture`` on."""
    model: str = ""
    """Name in ``schedules.gpu.traits.MODELS``; empty for whatever GPU."""

    def target(self) -> dict[str, Any]:
        """Return TVM's target."""
        found: dict[str, Any] = {"kind": self.dialect}
        if self.architecture:
            found["arch"] = self.architecture
        if self.is_oldest:
            found["keys"] = [self.dialect, "gpu", PTX]
        return found | ({"model": self.model} if self.model else {})


HARD_FLOAT = (("mfloat-abi", "hard"),)
RV64GC = ("+m", "+a", "+f", "+d", "+c")
LP64D = (("mabi", "lp64d"),)
SCALAR = (("vector-width", 32),)  # TVM warns where it has to guess

HEXAGON = "hexagon"
"""Beginning of the names of Hexagon DSPs; a version of the instruction set follows."""


def _hexagon(version: str, phones: str, verified: Verified) -> Cpu:
    """Return a Hexagon DSP of a version: floats run on its scalar units, integers on HVX's vectors of 128 bytes."""
    return Cpu(
        title=f"Hexagon {version} DSP ({phones})",
        triple="hexagon-unknown-linux-musl",
        cpu=f"hexagon{version}",
        features=(f"+hvx{version}", "+hvx-length128b", "-hvx-qfloat"),
        options=(("vector-width", 1024),),
        verified=verified,
    )


CPUS = {
    "linux-x64": Cpu(
        title="PC with AVX2, Linux",
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v3",
        cores=4,
        verified=Verified.HARDWARE,
    ),
    "win-x64": Cpu(
        title="PC with AVX2, Windows",
        triple="x86_64-pc-windows-gnu",
        cpu="x86-64-v3",
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "m1": Cpu(
        title="Mac with M1 or later",
        triple="arm64-apple-macos",
        cpu="apple-m1",
        cores=4,
        verified=Verified.LINKED,
    ),
    "pi5": Cpu(
        title="Raspberry Pi 5",
        triple="aarch64-unknown-linux-gnu",
        cpu="cortex-a76",
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "pi4": Cpu(
        title="Raspberry Pi 4",
        triple="aarch64-unknown-linux-gnu",
        cpu="cortex-a72",
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "pi-zero2": Cpu(
        title="Raspberry Pi Zero 2, 3",
        triple="aarch64-unknown-linux-gnu",
        cpu="cortex-a53",
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "pi3-32": Cpu(
        title="Raspberry Pi 2 or later, 32-bit",
        triple="armv7a-unknown-linux-gnueabihf",
        cpu="cortex-a7",
        options=HARD_FLOAT,
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "android-arm64": Cpu(
        title="Android 5 and later",
        triple="aarch64-unknown-linux-android21",
        cpu="generic",
        cores=4,
        verified=Verified.LINKED,  # tests/pock_tvm/deploying/test_phones.py
    ),
    "ios": Cpu(
        title="iPhone XS and later",
        triple="arm64-apple-ios14.0",
        cpu="apple-a12",
        cores=2,
        verified=Verified.GENERATED,
    ),
    "riscv64": Cpu(
        title="RISC-V (RV64GC), Linux",
        triple="riscv64-unknown-linux-gnu",
        cpu="generic-rv64",
        features=RV64GC,
        options=(*LP64D, *SCALAR),
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "riscv64-v": Cpu(
        title="RISC-V with vectors, Linux",
        triple="riscv64-unknown-linux-gnu",
        cpu="generic-rv64",
        features=(*RV64GC, "+v"),
        options=(*LP64D, ("vector-width", 128)),
        cores=4,
        verified=Verified.EMULATOR,
    ),
    "cortex-m7": Cpu(
        title="STM32F746 and the like",
        triple="thumbv7em-unknown-none-eabihf",
        cpu="cortex-m7",
        options=(*HARD_FLOAT, *SCALAR),
        flash_bytes=MIB,
        ram_bytes=320 * KIB,
        verified=Verified.EMULATOR,  # tests/pock_tvm/deploying/test_microcontrollers.py
    ),
    "cortex-m33": Cpu(
        title="Pico 2 (RP2350) and the like",
        triple="thumbv8m.main-unknown-none-eabihf",
        cpu="cortex-m33",
        options=(*HARD_FLOAT, *SCALAR),
        flash_bytes=4 * MIB,
        ram_bytes=520 * KIB,
        verified=Verified.EMULATOR,  # tests/pock_tvm/deploying/test_microcontrollers.py
    ),
    # tests/pock_tvm/deploying/test_hexagon.py
    f"{HEXAGON}-v66": _hexagon("v66", "Snapdragon 855", Verified.EMULATOR),
    f"{HEXAGON}-v68": _hexagon("v68", "Snapdragon 888", Verified.EMULATOR),
    f"{HEXAGON}-v69": _hexagon("v69", "Snapdragon 8 Gen 1", Verified.EMULATOR),
    f"{HEXAGON}-v73": _hexagon("v73", "Snapdragon 8 Gen 2", Verified.EMULATOR),
    f"{HEXAGON}-v75": _hexagon("v75", "Snapdragon 8 Gen 3", Verified.LINKED),
}
GPUS = {
    "jetson-orin": Gpu(
        title="NVIDIA Jetson Orin",
        dialect="cuda",
        architecture="sm_87",
        model="jetson-orin",
        verified=Verified.LINKED,  # tests/pock_tvm/compiler/test_targets.py
    ),
    "jetson-nano": Gpu(
        title="NVIDIA Jetson Nano, TX1",
        dialect="cuda",
        architecture="sm_53",
        model="jetson-nano",
        verified=Verified.LINKED,
    ),
    "h200": Gpu(
        title="NVIDIA H200, H100",
        dialect="cuda",
        architecture="sm_90",
        model="h200",
        verified=Verified.LINKED,
    ),
    "cuda": Gpu(
        title="NVIDIA GPU since 2018 (sm_75)",
        dialect="cuda",
        architecture="sm_75",
        is_oldest=True,
        verified=Verified.GENERATED,
    ),
    "m1-gpu": Gpu(
        title="Mac with M1 or later, by Metal",
        dialect="metal",
        model="m1",
        verified=Verified.GENERATED,
    ),
    "webgpu": Gpu(
        title="GPU, by Vulkan, Metal, DirectX",
        dialect="webgpu",
        verified=Verified.EMULATOR,  # llvmpipe
    ),
    "opencl": Gpu(
        title="GPU or CPU, by OpenCL",
        dialect="opencl",
        verified=Verified.EMULATOR,  # PoCL
    ),
}
MACHINES: dict[str, Cpu | Gpu] = CPUS | GPUS
"""Machines by short name. Any other is a TVM tag or a TVM target. Tests of bundles (``tests/pock_tvm/deploying``) and
of GPUs (``tests/pock_tvm/device/gpu``) ran them as far as ``verified`` says."""
