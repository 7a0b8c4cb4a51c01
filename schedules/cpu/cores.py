"""Core models: what a core's vector unit does in a cycle, from the vendors' optimisation guides."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Core:
    """Throughput and latency of a core, in vectors of its full width (one number where it has no vectors)."""

    fma_ports: int
    """Multiply-adds that start in a cycle."""
    fma_latency: int
    """Cycles from a multiply-add to the next one on the same accumulator."""
    load_ports: float
    """Loads that start in a cycle."""
    cache_bytes: int | None = None
    """Second-level cache per core, or all cache where there is one level, in bytes. None: by instruction set."""
    cache_stream: float = 32
    """Bytes that the second-level cache delivers in a cycle, over many."""


CORES = {
    # A 128-bit load of an A7 or A53 takes two cycles. All but the A76 share their L2 cache between two or four cores.
    "cortex-a7": Core(fma_ports=1, fma_latency=8, load_ports=0.5, cache_bytes=128 * KIB),
    "cortex-a53": Core(fma_ports=1, fma_latency=4, load_ports=0.5, cache_bytes=128 * KIB),
    "cortex-a72": Core(fma_ports=1, fma_latency=3, load_ports=1, cache_bytes=256 * KIB),
    "cortex-a76": Core(fma_ports=2, fma_latency=2, load_ports=2, cache_bytes=512 * KIB),
    "apple-a12": Core(fma_ports=3, fma_latency=4, load_ports=2, cache_bytes=4096 * KIB),
    "apple-m1": Core(fma_ports=4, fma_latency=4, load_ports=3, cache_bytes=3072 * KIB),
    "cortex-m7": Core(fma_ports=1, fma_latency=3, load_ports=1, cache_bytes=16 * KIB),
    "cortex-m33": Core(fma_ports=1, fma_latency=3, load_ports=1, cache_bytes=16 * KIB),
    # Those of ARM's with the pipes of an A76, or twice as many.
    "cortex-a57": Core(fma_ports=1, fma_latency=5, load_ports=1, cache_bytes=256 * KIB),
    **dict.fromkeys(
        ("cortex-a77", "cortex-a78", "neoverse-n1", "neoverse-n2"),
        Core(fma_ports=2, fma_latency=2, load_ports=2, cache_bytes=512 * KIB),
    ),
    **dict.fromkeys(
        ("cortex-x1", "cortex-x2", "neoverse-v1", "neoverse-v2"),
        Core(fma_ports=4, fma_latency=2, load_ports=3, cache_bytes=1024 * KIB),
    ),
    **dict.fromkeys(
        ("apple-m2", "apple-m3", "apple-m4"), Core(fma_ports=4, fma_latency=4, load_ports=3, cache_bytes=4096 * KIB)
    ),
    # Vectors of a Zen 1 are halves, and those of a Zen 4 with AVX-512, too.
    "znver1": Core(fma_ports=1, fma_latency=5, load_ports=1),
    "znver2": Core(fma_ports=2, fma_latency=5, load_ports=2),
    "znver3": Core(fma_ports=2, fma_latency=4, load_ports=2),
    "znver4": Core(fma_ports=1, fma_latency=4, load_ports=1),
    "znver5": Core(fma_ports=2, fma_latency=4, load_ports=2, cache_stream=64),
    **dict.fromkeys(("haswell", "broadwell"), Core(fma_ports=2, fma_latency=5, load_ports=2, cache_bytes=256 * KIB)),
    "skylake": Core(fma_ports=2, fma_latency=4, load_ports=2, cache_bytes=256 * KIB),
    **dict.fromkeys(
        ("skylake-avx512", "cascadelake", "cooperlake"),
        Core(fma_ports=2, fma_latency=4, load_ports=2, cache_bytes=1024 * KIB),
    ),
    # Their second port has no vectors of AVX-512.
    **dict.fromkeys(
        ("icelake-client", "rocketlake"), Core(fma_ports=1, fma_latency=4, load_ports=2, cache_bytes=512 * KIB)
    ),
    "tigerlake": Core(fma_ports=1, fma_latency=4, load_ports=2, cache_bytes=1280 * KIB),
    "icelake-server": Core(fma_ports=2, fma_latency=4, load_ports=2, cache_bytes=1280 * KIB, cache_stream=48),
    # The fast cores of these.
    **dict.fromkeys(
        ("alderlake", "raptorlake", "meteorlake", "arrowlake", "arrowlake-s", "lunarlake"),
        Core(fma_ports=2, fma_latency=4, load_ports=3, cache_bytes=1280 * KIB),
    ),
    # Scalar floats: a packet has two multiply-adds. From Qualcomm's programmer's reference manuals.
    **dict.fromkeys(
        ("hexagonv66", "hexagonv68", "hexagonv69", "hexagonv73", "hexagonv75"),
        Core(fma_ports=2, fma_latency=4, load_ports=2, cache_bytes=1024 * KIB),
    ),
    **dict.fromkeys(
        ("sapphirerapids", "emeraldrapids", "graniterapids"),
        Core(fma_ports=2, fma_latency=4, load_ports=2, cache_stream=48),
    ),
}
"""Cores by LLVM's name of the CPU."""
GENERIC_X86 = Core(fma_ports=2, fma_latency=4, load_ports=2)
GENERIC_ARM = Core(fma_ports=2, fma_latency=4, load_ports=2)
GENERIC_SCALAR = Core(fma_ports=1, fma_latency=5, load_ports=1)
