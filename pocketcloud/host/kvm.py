"""KVM as proven by a timed loop: judges what kvm_probe.py measured, in words, and remembers the verdict until the next boot.

Whether a lab then runs on KVM or on emulation is the profile's.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pocketcloud.host.files import text
from pocketcloud.host.hardware import read_machine
from pocketcloud.model.facts import Kvm, KvmState
from pocketcloud.system import CommandFailed, Runner

SLOW_SECONDS = 0.025
"""The loop's time, in any mode but real mode, from which KVM counts as unusable. Measured: hardware well under 0.001, nested
KVM on an emulated processor 0.007, a kvm_pvm that emulates every instruction 0.08 to 0.37; the limit is about as far from the
second as from the third."""

# Machines whose processors have a flag for it, as `uname -m` calls them.
_FLAGGED = ("x86_64", "i686", "i586")
_PROBE_TIMEOUT = 20.0
_VERDICT = "run/pocketcloud/kvm.json"


def read_kvm(root: Path, run: Runner, *, fresh: bool = False) -> Kvm:
    """The verdict on `root`'s /dev/kvm. One that took a loop is kept on tmpfs (`/run/pocketcloud`, where it can be written)
    while boot, kernel and modules are the same; `fresh` measures again."""
    device = root / "dev/kvm"
    if (closed := _closed(device, root)) is not None:
        return closed
    key = _key(root)
    if not fresh and (kept := _recall(root, key)) is not None:
        return kept
    kvm = _judge(_measure(device, run), _modules(root))
    if kvm.state in (KvmState.USABLE, KvmState.SLOW):
        _remember(root, key, kvm)
    return kvm


def _closed(device: Path, root: Path) -> Kvm | None:
    """The verdict where the device cannot be opened; None where it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Kvm(KvmState.DENIED, f"{device} cannot be opened for reading and writing by this user (uid {os.geteuid()})")
    except FileNotFoundError:
        return Kvm(KvmState.ABSENT, f"there is no {device}; {_why_absent(root)}")
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return Kvm(KvmState.ABSENT, f"{device} has no driver behind it; {_why_absent(root)}")
        return Kvm(KvmState.BROKEN, f"{device}: {error.strerror}")
    return None


def virtualisation_flag(root: Path) -> str:
    """`vmx` (Intel), `svm` (AMD) or empty, from /proc/cpuinfo. Empty proves nothing: ARM has no such flag, and a hypervisor
    may hide it."""
    for line in text(root, "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return next((flag for flag in ("vmx", "svm") if flag in value.split()), "")
    return ""


def _why_absent(root: Path) -> str:
    modules = _modules(root)
    loaded = f"modules: {', '.join(modules)}" if modules else "no kvm module is loaded"
    flag = virtualisation_flag(root)
    if read_machine(root) not in _FLAGGED:
        return loaded
    return f"{loaded}; the processor shows {f'the flag {flag}' if flag else 'neither vmx nor svm'}"


def _modules(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "sys/module").glob("kvm*"))


def _measure(device: Path, run: Runner) -> Mapping[str, object]:
    """What the probe printed: `seconds` and `instructions`, or `failed` with the reason in words."""
    probe = Path(__file__).with_name("kvm_probe.py")
    try:
        # -I: nothing from the current folder or the user's environment is imported by what may run as root.
        done = run([sys.executable, "-I", probe, device], timeout=_PROBE_TIMEOUT)
        answer = json.loads(done.out)
    except CommandFailed as failed:
        return {"failed": f"the timed loop ended with {failed.message.splitlines()[-1]}"}
    except ValueError:
        return {"failed": "the timed loop printed no figures"}
    return answer if isinstance(answer, dict) else {"failed": "the timed loop printed no figures"}


def _judge(measured: Mapping[str, object], modules: list[str]) -> Kvm:
    taken, instructions = measured.get("seconds"), measured.get("instructions")
    if not isinstance(taken, dict) or not isinstance(instructions, int) or not _are_times(taken):
        return Kvm(KvmState.BROKEN, str(measured.get("failed", "the timed loop printed no figures")))
    # A kernel leaves real mode after a moment, and processors before Intel's "unrestricted guest" have it emulated.
    decisive = {mode: seconds for mode, seconds in taken.items() if mode != "real"}
    seconds = max(decisive.values())
    nanoseconds = seconds / instructions * 1e9
    times, modes = " / ".join(f"{each * 1000:.3g}" for each in taken.values()), _listed(list(taken))
    took = f"a loop of {instructions} instructions took {times} ms in {modes} mode: {nanoseconds:.3g} ns an instruction"
    nests = _number(measured.get("nested_state")), measured.get("arm_el2") == 1
    if seconds < SLOW_SECONDS:
        emulated = "; real mode is emulated, which only delays the start" if taken.get("real", 0.0) >= SLOW_SECONDS else ""
        return Kvm(KvmState.USABLE, took + emulated, nanoseconds, *nests)
    behind = f" (modules: {', '.join(modules)})" if modules else ""
    return Kvm(KvmState.SLOW, f"{took}; it is emulated, not run by the processor{behind}", nanoseconds, *nests)


def _are_times(taken: Mapping[object, object]) -> bool:
    return any(mode != "real" for mode in taken) and all(isinstance(seconds, float) for seconds in taken.values())


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


# -- the kept verdict -------------------------------------------------------------------------------------------------


def _key(root: Path) -> list[str]:
    """What the verdict depends on. A reloaded module may come with other settings, and a nested one with another speed."""
    settings = [
        f"{module}.{name}={text(root, f'sys/module/{module}/parameters/{name}').strip()}"
        for module in _modules(root)
        for name in ("nested", "ept", "npt", "force_emulation_prefix")
    ]
    return [
        text(root, "proc/sys/kernel/random/boot_id").strip(),
        text(root, "proc/sys/kernel/osrelease").strip(),
        *settings,
        f"slow={SLOW_SECONDS}",
    ]


def _recall(root: Path, key: list[str]) -> Kvm | None:
    try:
        kept = json.loads((root / _VERDICT).read_text(encoding="utf-8"))
        if kept["key"] == key and key[0]:
            nests = int(kept["nested_state"]), bool(kept["arm_el2"])
            return Kvm(KvmState(kept["state"]), str(kept["evidence"]), float(kept["nanoseconds"]), *nests)
    except (OSError, ValueError, KeyError, TypeError):
        # Absent, half written by another version, or of another shape: measuring again is the answer to all.
        pass
    return None


def _remember(root: Path, key: list[str], kvm: Kvm) -> None:
    place = root / _VERDICT
    values = {"key": key, **asdict(kvm)}
    try:
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".kvm-", delete=False, encoding="utf-8") as aside:
            json.dump(values, aside)
        Path(aside.name).chmod(0o644)
        Path(aside.name).replace(place)
    except OSError:
        # Not root, or a read-only /run: then every command measures for itself.
        return
