"""What libvirt's handle of a domain tells and takes, a piece of a verb each; the verbs themselves are in libvirt.py.

All raise libvirt's own error, which the verbs explain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import libvirt

from pocketcloud.hypervisor import complaints, xml
from pocketcloud.hypervisor.raising import AGENT_FAILED, NO_AGENT, absence
from pocketcloud.model.inventory import NO_SPACE, Domain, DomainState

AGENT_SECONDS = 10
_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}


def domain_of(handle: Any) -> Domain | None:
    """What libvirt has, None if it does not carry our mark."""
    reading = look(handle)
    if reading.mark is None:
        return None
    number, cause = handle.state()
    state, reason = _STATES.get(number, DomainState.RUNNING), ""
    if number == libvirt.VIR_DOMAIN_SHUTOFF and cause == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
        state, reason = DomainState.CRASHED, "QEMU ended by itself"
    elif number == libvirt.VIR_DOMAIN_PAUSED and cause == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        full = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in handle.diskErrors().values()
        reason = NO_SPACE if full else "I/O error"
    elif number == libvirt.VIR_DOMAIN_PAUSED and cause == libvirt.VIR_DOMAIN_PAUSED_USER:
        reason = "suspended"
    saved = state is DomainState.OFF and bool(handle.hasManagedSaveImage())
    clean = number == libvirt.VIR_DOMAIN_SHUTOFF and cause == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN
    known = reading.name, reading.mark, state, reading.disks, reading.agent, reason, reading.memory
    return Domain(*known, saved, clean, reading.machine_type, reading.screen)


def resume(handle: Any) -> None:
    if handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        try:
            handle.resume()
        except libvirt.libvirtError:
            if handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:  # else somebody else was quicker
                raise


def look(handle: Any) -> xml.DomainReading:
    return xml.read_domain(handle.XMLDesc(0))


def set_clock(handle: Any, seconds: float) -> bool:
    if not look(handle).agent:
        return False
    handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
    whole = int(seconds)
    handle.setTime({"seconds": whole, "nseconds": int((seconds - whole) * 1_000_000_000)}, 0)
    return True


def remember_frozen(handle: Any, element: str | None) -> None:
    kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
    with absence(complaints.NO_METADATA):
        handle.setMetadata(kind, element, "pocketcloud-state", xml.STATE_NAMESPACE, live)


def freeze(handle: Any) -> None:
    """Freeze, or thaw again what was frozen before it failed."""
    remember_frozen(handle, "<frozen/>")
    try:
        handle.fsFreeze()
    except libvirt.libvirtError as complaint:
        with contextlib.suppress(libvirt.libvirtError):
            if _unfrozen(handle, answered=complaint.get_error_code() in AGENT_FAILED):
                remember_frozen(handle, None)
        raise


def _unfrozen(handle: Any, *, answered: bool) -> bool:
    """Whether nothing is frozen after it could not be done. An agent that `answered` so has thawed by itself, and may refuse
    to do it again; one that did not may still come to freezing, when it answers again."""
    try:
        handle.fsThaw()
    except libvirt.libvirtError as complaint:
        return answered and complaint.get_error_code() not in NO_AGENT
    return True


def ask_to_power_off(handle: Any) -> None:
    """Through the agent where one listens, else by the power button."""
    ways: list[Callable[[], object]] = [lambda: handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)]
    if look(handle).agent:
        handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
        ways.insert(0, lambda: handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT))
    for way in ways:
        try:
            way()
        except libvirt.libvirtError:
            if not handle.isActive():
                return
            if way is ways[-1]:
                raise
        else:
            return


def kill(handle: Any) -> None:
    if handle.isActive():
        try:
            handle.destroy()
        except libvirt.libvirtError:
            if handle.isActive():  # else it went by itself meanwhile
                raise
