"""What ARM64 computers differ in and machines depend on: kinds of cores, interrupt controller, page size, 32-bit programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.host.arm import read_gic, read_page_size, read_program_bits
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Core, KvmState
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import KIB, size_text
from pocketcloud.profiles import quickest_cores, ranges

_GROUP = "kvm"
_PROGRAMS_WHY = "A 64-bit kernel refuses KVM to 32-bit programs, QEMU among them."


def judge(here: Surroundings) -> Iterator[Check]:
    """On ARM64 only: cores, GIC, page size, and whether programs are of 64 bits where that can be told."""
    if here.facts.arch is not Arch.AARCH64:
        return
    yield cores(here.facts.cores, quickest_cores(here.facts.cores))
    version, told = read_gic(here.root)
    yield gic(version, told, works=here.facts.kvm.state is KvmState.USABLE)
    yield _page_size(here)
    if bits := read_program_bits(here.root):
        yield _programs(bits)


def cores(kinds: Sequence[Core], quick: Core | None) -> Check:
    """Of one kind, or of several, of which machines stay on the quick one."""
    why = "A virtual processor that was made on one kind of core does not start on another: KVM refuses it, now and then."
    if not kinds:
        return Check("cores", _GROUP, State.UNKNOWN, "/proc/cpuinfo does not tell the kinds of cores", why)
    named = ", ".join(f"{len(core.cpus)} {core.name}" for core in kinds)
    if quick is None:
        return Check("cores", _GROUP, State.OK, f"{named}: all of one kind", why)
    where = "; ".join(f"{core.name}: CPU {ranges(core.cpus)}" for core in kinds)
    evidence = f"{named}, of {len(kinds)} kinds ({where}); machines on KVM are kept on the {quick.name}, CPU {ranges(quick.cpus)}"
    return Check("cores", _GROUP, State.OK, evidence, why)


def gic(version: int, told: str, *, works: bool) -> Check:
    """The interrupt controller; `works`: KVM is proven to run guests."""
    why = "Machines need an interrupt controller that the processor shares with them; that of a GICv2 knows eight processors."
    if version == 2:
        return Check("gic", _GROUP, State.OK, f"GICv2 ({told}): a machine has 8 processors at most", why)
    if version:
        return Check("gic", _GROUP, State.OK, f"GICv{version} ({told})", why)
    if works:
        return Check("gic", _GROUP, State.OK, f"{told}, but KVM has one for its guests", why)
    if not told.startswith("no GIC"):
        return Check("gic", _GROUP, State.UNKNOWN, told, why)
    remedy = ("Use another board: on one without a GIC, as the Raspberry Pi 3, labs run on emulation",)
    return Check("gic", _GROUP, State.WARN, told, why, remedy)


def _page_size(here: Surroundings) -> Check:
    why = (
        "Guests have pages of their own size, but QEMU's memory is counted in the host's: larger ones take more for each machine."
    )
    size = read_page_size(here.root)
    if not size:
        return Check("page-size", _GROUP, State.UNKNOWN, "/proc/self/smaps does not tell it", why)
    if size <= 16 * KIB:
        return Check("page-size", _GROUP, State.OK, f"pages of {size_text(size)}", why)
    evidence = f"pages of {size_text(size)}: each machine takes some MiB more, and 32-bit guests do not run"
    return Check("page-size", _GROUP, State.WARN, evidence, why, ("Start a kernel with pages of 4 KiB where memory is short",))


def _programs(bits: int) -> Check:
    if bits == 64:
        return Check("programs", _GROUP, State.OK, "the system's programs are of 64 bits", _PROGRAMS_WHY)
    evidence = "the kernel is of 64 bits, the system's programs are of 32 (there is no ld-linux-aarch64.so.1)"
    return Check("programs", _GROUP, State.WARN, evidence, _PROGRAMS_WHY, ("Install the 64-bit edition of the system",))
