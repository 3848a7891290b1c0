"""What the host must have before a base is built; everything that is missing is said at once, before anything starts."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pocketcloud.bases.namespace import confined, give
from pocketcloud.errors import HostLacks, NoSpace, PocketcloudError
from pocketcloud.host.packages import install_command
from pocketcloud.host.release import read_distribution
from pocketcloud.model.base import Arch, BootstrapDefinition
from pocketcloud.model.profile import Profile
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.storage import Storage
from pocketcloud.system import Runner, run, which

# A program and its row in packages.tsv. Those of util-linux and coreutils are part of every distribution.
_TOOLS = {
    "mmdebstrap": "bootstrap",
    "gpg": "bootstrap",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mcopy": "mtools",
}
_STEP_TOOLS = {"patch": "steps", "zstd": "steps"}
_UTIL_LINUX = ("setpriv", "unshare", "nsenter")
_FOREIGN = "test:slow-arm64"

# Estimates, on the safe side: the tree and the image together lie in the work folder (an image holds about 0.5 GiB); filling
# the volume then takes the image's content twice, once raw.
_WORK_SPACE = 1800 * MIB
_STORE_SPACE = 1300 * MIB


@dataclass(frozen=True, slots=True)
class Ground:
    """The host as far as building goes: `root` of its file system, `machine` as `uname -m`, whether we are `privileged`; the
    `profile` that shapes the machines of installers (None: the one that suits the host)."""

    root: Path
    machine: str
    privileged: bool
    profile: Profile | None = None


def ground() -> Ground:
    """This host."""
    return Ground(Path("/"), platform.machine(), os.geteuid() == 0)


def check(definition: BootstrapDefinition, arch: Arch, work: Path, storage: Storage, here: Ground, run: Runner = run) -> None:
    """Raise HostLacks with everything that is missing, or NoSpace if it is only space. `work`: the work folder, made already."""
    lacking = list(_lacking(definition, arch, here))
    if not lacking:
        lacking += _namespace(work, run)
    cramped = list(_cramped(work, storage))
    if not lacking and not cramped:
        return
    hints = dict.fromkeys(hint for _, hint in lacking if hint)
    if not lacking:
        hints["remove labs or bases that are not needed, or move the kit to a larger disk"] = None
    kind: type[PocketcloudError] = HostLacks if lacking else NoSpace
    said = [text for text, _ in lacking] + cramped
    raise kind(f"base {definition.base} ({arch}) cannot be built here: " + "; ".join(said), hint="; ".join(hints))


def missing_tools(tools: Mapping[str, str], here: Ground) -> tuple[str, str] | None:
    """Which of `tools` (programs and their rows in packages.tsv) are not installed, and the remedy; None if all are."""
    absent = [tool for tool in tools if which(tool) is None]
    if not absent:
        return None
    rows = dict.fromkeys(tools[tool] for tool in absent)
    return f"not installed: {', '.join(absent)}", install_command(read_distribution(here.root), here.machine, rows)


def _lacking(definition: BootstrapDefinition, arch: Arch, here: Ground) -> Iterator[tuple[str, str]]:
    """What is missing, each with its remedy."""
    distribution = read_distribution(here.root)
    if not here.privileged:
        yield "it takes root, to set up the namespace that the packages are unpacked in", "run it with sudo"
    wanted = _TOOLS | (_STEP_TOOLS if definition.patches or definition.post else {})
    if missing := missing_tools(wanted, here):
        yield missing
    if plain := [tool for tool in _UTIL_LINUX if which(tool) is None]:
        yield f"not installed: {', '.join(plain)} (util-linux)", ""
    keyring = here.root / definition.keyring.lstrip("/")
    if not keyring.is_file() or not keyring.stat().st_size:
        yield f"no keyring {keyring} to check the packages with", install_command(distribution, here.machine, ["keyring"])
    if arch != here.machine:
        yield from _foreign(arch, here)


def _foreign(arch: Arch, here: Ground) -> Iterator[tuple[str, str]]:
    """Programs of another architecture run through binfmt_misc, if their interpreter was opened at registration (flag F):
    in the new system there is none to open."""
    entry = here.root / f"proc/sys/fs/binfmt_misc/qemu-{arch}"
    try:
        words = entry.read_text(encoding="utf-8").split()
    except OSError:
        words = []
    flags = next((value for name, value in pairwise(words) if name == "flags:"), "")
    if "enabled" in words and "F" in flags:
        return
    remedies = [install_command(read_distribution(here.root), here.machine, [_FOREIGN])]
    if not (here.root / "proc/sys/fs/binfmt_misc/register").exists():
        remedies.append("mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc")
    if not words:
        remedies.append(f"update-binfmts --enable qemu-{arch} (or: systemctl restart systemd-binfmt)")
    state = "programs of that architecture do not run on this host" if not words else "its emulator is registered without flag F"
    yield f"{state} ({here.machine})", "; then ".join(remedy for remedy in remedies if remedy)


def _namespace(work: Path, run: Runner) -> Iterator[tuple[str, str]]:
    """Tried, not inferred: distributions and containers forbid namespaces in many ways."""
    probe = work / "probe"
    try:
        probe.mkdir()
        give(probe)
    except OSError as error:
        yield f"the file system of {work} keeps no owners ({error.strerror})", "keep the kit on ext4, XFS or btrfs"
        return
    try:
        run(confined(work, ["test", "-O", "probe"]), timeout=60)
    except PocketcloudError as error:
        last = error.message.splitlines()[-1]
        yield (
            f"a user namespace cannot be made: {last}",
            "allow user namespaces (sysctl user.max_user_namespaces), or leave the container",
        )


def _cramped(work: Path, storage: Storage) -> Iterator[str]:
    free = shutil.disk_usage(work).free
    left = storage.usage().free
    if free < _WORK_SPACE:
        yield f"{size_text(free)} are free in {work.parent}, it takes {size_text(_WORK_SPACE)}"
    if left < _STORE_SPACE:
        yield f"{size_text(left)} are free in the kit's store, it takes {size_text(_STORE_SPACE)}"
