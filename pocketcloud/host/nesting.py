"""What the host's kernel says of machines inside machines: the settings of KVM's modules, and the kernel's command line.

Outside facts: Linux's Documentation/virt/kvm/x86/running-nested-guests.rst and admin-guide/kernel-parameters.txt. Intel's
parameters are booleans, printed as Y or N, AMD's `nested` is a number: 1 or 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.host.files import line, number, text

# What the processor does for a nested machine that the kernel would have to do otherwise, exit by exit.
_HELPERS = {"kvm_intel": ("ept", "enable_shadow_vmcs", "enable_apicv"), "kvm_amd": ("npt",)}


@dataclass(frozen=True, slots=True)
class KvmModule:
    """KVM's module for this processor: `nested` is None where its parameter cannot be read; `helpers` are what makes nested
    machines quick, with whether it is on; `built_in` into the kernel, so that it cannot be loaded anew."""

    name: str
    nested: bool | None
    helpers: Mapping[str, bool]
    built_in: bool
    users: int


def read_module(root: Path) -> KvmModule | None:
    """KVM's module on x86, None if neither Intel's nor AMD's is there (both on none)."""
    for name, helpers in _HELPERS.items():
        folder = root / "sys/module" / name
        if folder.is_dir():
            states = {helper: _switch(root, name, helper) for helper in helpers}
            return KvmModule(
                name,
                _switch(root, name, "nested"),
                {helper: state for helper, state in states.items() if state is not None},
                # A module that was loaded has a state; one that was built in only has its parameters.
                built_in=not (folder / "initstate").exists(),
                users=number(line(root, f"sys/module/{name}/refcnt")) or 0,
            )
    return None


def _switch(root: Path, module: str, name: str) -> bool | None:
    value = line(root, f"sys/module/{module}/parameters/{name}")
    return {"Y": True, "y": True, "1": True, "N": False, "n": False, "0": False}.get(value)


def read_arm_mode(root: Path) -> str:
    """The mode that KVM was told on an ARM kernel's command line: `nested`, `protected`, `none`; empty for none of it."""
    for word in reversed(text(root, "proc/cmdline").split()):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == "kvm-arm.mode":
            return value
    return ""
