"""What machines demand of the host beyond memory and processors: a KVM of their own, firmware that checks signatures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketcloud.errors import HostLacks, Refused
from pocketcloud.model.base import Firmware
from pocketcloud.model.inventory import Inventory

if TYPE_CHECKING:
    from pocketcloud.plan.drafting import Draft, Fate, Ground

_SLOWLY = "machines inside it are emulated, ten to thirty times slower than with KVM"


@dataclass(frozen=True, slots=True)
class Lack:
    """Why the host has not what a machine demands, in words, and what to do about it (empty: nothing)."""

    reason: str
    remedy: str


def check_demands(draft: Draft, fates: Sequence[Fate], have: Inventory, ground: Ground) -> None:
    """Refuse to start machines that would find less than they demand, and note those that make do with less. Raises HostLacks
    and Refused."""
    starting = [f for f in fates if f.restart or (d := have.domains.get(f.name)) is None or not d.active]
    _check_nesting(draft, [fate for fate in starting if fate.record.definition.runs_machines], ground)
    _check_secure_boot(draft, [fate for fate in starting if fate.record.definition.secure_boot], ground)


def _check_nesting(draft: Draft, fates: Sequence[Fate], ground: Ground) -> None:
    lack = ground.no_nesting
    if lack is None:
        return
    refused = [fate.name for fate in fates if fate.record.definition.nested is True]
    if refused:
        instead = "say `nested: emulate` in the lab file: then " + _SLOWLY
        raise HostLacks(
            f"lab {draft.instance}: {', '.join(refused)} {'are' if len(refused) > 1 else 'is'} to run machines (nested: true),"
            f" which have no KVM here: {lack.reason}",
            hint=f"{lack.remedy}; or {instead}" if lack.remedy else instead,
        )
    draft.notes += [f"{fate.name}: {_SLOWLY} ({lack.reason})" for fate in fates]


def _check_secure_boot(draft: Draft, fates: Sequence[Fate], ground: Ground) -> None:
    bios = [f"{fate.name} ({fate.record.definition.base})" for fate in fates if fate.record.firmware is Firmware.BIOS]
    if bios:
        raise Refused(
            f"lab {draft.instance}: {', '.join(bios)}: secure_boot is for bases that start by UEFI; a BIOS checks no signatures",
            hint="take another base, or leave `secure_boot:` out of the lab file",
        )
    if fates and (lack := ground.no_secure_boot):
        names = ", ".join(fate.name for fate in fates)
        raise HostLacks(f"lab {draft.instance}: {names} with secure_boot: {lack.reason}", hint=lack.remedy)
