"""Whether a base's system would run on the processor that machines get here: by the levels of the x86-64 psABI. Pure.

Told before anything starts; afterwards it would be a kernel that panics, or "Fatal glibc error: CPU does not support x86-64-v3".
Sources: x86-64 psABI, 3.1.1, "Micro-Architecture Levels"; the names are those of /proc/cpuinfo (Linux,
arch/x86/include/asm/cpufeatures.h: pni is SSE3, abm is LZCNT; OSXSAVE follows xsave). QEMU translates AVX2 since its version 7.2,
and AVX-512 not at all (its changelog).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pocketcloud.model.base import Arch, CpuLevel
from pocketcloud.model.profile import Acceleration
from pocketcloud.profiles import Shape

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_FLAGS: Mapping[CpuLevel, frozenset[str]] = {
    CpuLevel.V1: frozenset(),
    CpuLevel.V2: _V2,
    CpuLevel.V3: _V3,
    CpuLevel.V4: _V4,
}
_AVX2_SINCE = (7, 2)
# libvirt's CPU modes that give a machine all that there is.
_WHOLE = ("host-passthrough", "maximum", "host-model")


def lacking(level: CpuLevel | None, arch: Arch, shape: Shape, flags: Collection[str], qemu: str) -> str:
    """What a machine lacks of `level`, in words; empty: nothing. `flags` are those of the host's processor, `qemu` is QEMU's
    version."""
    if level is None or arch is not Arch.X86_64 or level is CpuLevel.V1:
        return ""
    if shape.cpu_mode not in _WHOLE:
        return f"its system needs a processor of level {level}, and this profile's machines get {shape.cpu_mode}"
    if shape.acceleration is Acceleration.EMULATION:
        if level is CpuLevel.V2 or (level is CpuLevel.V3 and _version(qemu) >= _AVX2_SINCE):
            return ""
        return f"its system needs a processor of level {level}, which QEMU {qemu} cannot emulate"
    missing = sorted(_FLAGS[level] - set(flags))
    return f"its system needs a processor of level {level}, and this one lacks {', '.join(missing)}" if missing else ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
