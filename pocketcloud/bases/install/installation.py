"""The recipe of `kickstart`, `preseed` and `autoinstall`: the distribution's installer in a throw-away machine, to its end.

The machine writes straight into the new volume, which the store publishes whole or not at all. The answer file goes into a copy
of the installer's initramfs, or onto a small disc for Ubuntu's. When an installation fails, the volume is gone, and what the
machine said is kept in `media/logs/` of the kit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from pocketcloud.bases import answers, freshness
from pocketcloud.bases.answers import Answer
from pocketcloud.bases.install import anaconda, debian, medium, preflight, ubuntu
from pocketcloud.bases.install.logs import keep_logs
from pocketcloud.bases.install.machine import DISPOSABLE, GuestOrder, run_guest, sweep
from pocketcloud.bases.install.medium import Medium
from pocketcloud.bases.install.preflight import Surroundings, surroundings
from pocketcloud.bases.install.signs import NO_MEMORY, NO_SPACE, Signs, Stages
from pocketcloud.bases.install.watching import PORT, Failure, Fault, Watch
from pocketcloud.bases.install.way_out import WayOut, way_out
from pocketcloud.bases.recipe import Measured, Order, plain_http
from pocketcloud.cpio import append, appendable
from pocketcloud.errors import NoSpace, NotReady, PartlyDone, PocketcloudError
from pocketcloud.files import sync_file
from pocketcloud.iso import iso_image
from pocketcloud.model.base import UNKNOWN, Arch, Builder, Firmware, InstallDefinition
from pocketcloud.model.machine import DiskSpec, KernelBoot
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import MIB

RECIPE = 1
"""The version of what this package does beside the answer file: raised when an image would come out differently."""

_VCPUS = 4
_CONSOLES = {Arch.X86_64: "ttyS0,115200n8", Arch.AARCH64: "ttyAMA0"}
# An emulated timer can come late, which the kernel takes for broken hardware: "IO-APIC + timer doesn't work!".
_MACHINE_WORDS = {Arch.X86_64: "no_timer_check ", Arch.AARCH64: ""}
_FETCHED, _INSTALLED = 0.06, 0.96
"""How much of the whole time has passed when the installer is here, and when it is done."""
_SIGNS: Mapping[Builder, Signs] = {
    Builder.KICKSTART: anaconda.SIGNS,
    Builder.PRESEED: debian.SIGNS,
    Builder.AUTOINSTALL: ubuntu.SIGNS,
}


@dataclass(frozen=True, slots=True)
class Installation:
    """See Recipe. `templates` stand in place of ours (None: as `answers.render` has it); `now` is the time, for names of logs."""

    templates: Path | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def inputs(self, definition: InstallDefinition, arch: Arch) -> Iterator[tuple[str, bytes]]:
        """See Recipe.inputs."""
        yield "recipe", str(RECIPE).encode()
        yield from answers.inputs(definition, arch, self.templates)

    def firmware(self, definition: InstallDefinition, arch: Arch) -> Firmware:  # noqa: ARG002 - the same for all
        """See Recipe.firmware."""
        return Firmware.EFI

    def check(self, order: Order[InstallDefinition]) -> None:
        """See Recipe.check."""
        preflight.check(order, memory(order), lambda: medium.find(order), lambda: self._answer(order, "-"))

    def make(self, order: Order[InstallDefinition], volume: str) -> str:
        """See Recipe.make."""
        around = surroundings(order)
        sweep(around.hypervisor)
        found = medium.find(order)
        packages = UNKNOWN if order.offline else freshness.ask(order.definition, order.arch, order.mirror)
        order.tell(f"{found.name}: the installer", 0.0)
        media = medium.get(order, found, lambda text, done: order.tell(text, _FETCHED * done))
        build = volume.rpartition(".")[2]

        def fill(target: Path) -> None:
            with self._way(order, around) as way:
                answer = self._answer(order, build, way.proxy if way else "")
                used = _Job(order, around, way, answer, build, media, self.now).install(target)
            order.measured(Measured(used, packages))
            order.tell("storing the system", _INSTALLED)

        order.storage.create(volume, order.definition.size, fill)
        return f"{media.name}, libvirt {around.hypervisor.facts().libvirt}, QEMU {around.hypervisor.facts().qemu}"

    @contextmanager
    def _way(self, order: Order[InstallDefinition], around: Surroundings) -> Iterator[WayOut | None]:
        """What the installer has of a network: offline none, where it fetches nothing."""
        definition = order.definition
        if order.supply is not None and not (medium.tree_of(order) or definition.repos):
            yield None
            return
        with way_out(order.supply, around.hypervisor, around.facts, _purpose(definition)) as way:
            yield way

    def _answer(self, order: Order[InstallDefinition], build: str, proxy: str = "") -> Answer:
        """With a `proxy` all is asked of that, by http."""
        definition = order.definition
        site = answers.site(definition, order.arch, build)
        if definition.builder is Builder.KICKSTART:
            # Without a tree of its own it installs from its disc, or from where it is registered.
            site = replace(site, tree=medium.tree_of(order) + "/" if medium.tree_of(order) else "")
        else:
            mirror = medium.archive_of(order)
            site = replace(site, apt_mirror="" if mirror.archive == site.tree.rstrip("/") else mirror.archive)
        site = replace(site, activation_key=answers.activation_key(definition, order.here.root))
        if proxy:
            plain = {name: plain_http(url) for name, url in site.repos.items()}
            archive = plain_http(site.apt_mirror)
            site = replace(
                site,
                proxy=proxy,
                gateway=urlsplit(proxy).hostname or "",
                tree=plain_http(site.tree),
                repos=plain,
                apt_mirror=archive,
            )
        return answers.render(definition, order.arch, site, self.templates)


def memory(order: Order[InstallDefinition]) -> int:
    """What the installer's machine has, in bytes."""
    if order.definition.requires.memory:
        return order.definition.requires.memory
    match order.definition.builder:
        case Builder.KICKSTART:
            return (anaconda.MEMORY_DISC if order.arch in order.definition.media else anaconda.MEMORY_FETCHED) * MIB
        case Builder.PRESEED:
            return debian.MEMORY * MIB
        case Builder.AUTOINSTALL:
            return ubuntu.MEMORY * MIB


@dataclass(frozen=True, slots=True)
class _Job:
    """One installation. `way` is what it has of a network; `build` is what its marker says."""

    order: Order[InstallDefinition]
    around: Surroundings
    way: WayOut | None
    answer: Answer
    build: str
    media: Medium
    now: Callable[[], datetime]

    def install(self, target: Path) -> int:
        """Install onto the file or block device `target`; the bytes of its files before they were sealed. Raises PartlyDone,
        NoSpace, NotReady with why it failed."""
        definition = self.order.definition
        signs = _SIGNS[definition.builder]
        stages = Stages(signs.stages, self.order.tell, _FETCHED, _INSTALLED)
        watch = Watch(self.build, signs, stages, self.around.profile.install)
        folder = self.order.work / "machine"
        folder.mkdir(mode=0o711)
        outcome = run_guest(self.around.hypervisor, self._guest(folder, target, signs), watch)
        failure = watch.failure(outcome)
        if failure is not None:
            raise self._explained(
                failure, keep_logs(self.order.kit, definition.base, self.order.arch, folder, self.now(), self.answer.secrets)
            )
        sync_file(target)
        return watch.used

    def _guest(self, folder: Path, target: Path, signs: Signs) -> GuestOrder:
        definition, arch, profile = self.order.definition, self.order.arch, self.around.profile
        kernel, initrd = folder / "kernel", folder / "initrd"
        # libvirt gives them to QEMU's user: copies, then, of what the kit keeps.
        shutil.copyfile(self.media.kernel, kernel)
        disks = [DiskSpec("vda", target, "raw", DISPOSABLE, serial="root")]
        answer = {self.answer.name: self.answer.text.encode()}
        if definition.builder is Builder.AUTOINSTALL:
            seed = {"meta-data": f"instance-id: {self.build}\n".encode(), **answer}
            disks.append(_written(folder / "seed.iso", iso_image(ubuntu.LABEL, seed), "vdb"))
        elif not self._appended:
            disks.append(_written(folder / "answer.iso", iso_image(anaconda.LABEL, answer), "vdb"))
        if self._appended:
            append(self.media.initrd, initrd, answer)
        else:
            shutil.copyfile(self.media.initrd, initrd)
        if self.media.disc is not None:
            disks.append(DiskSpec("sda", self.media.disc, "raw", DISPOSABLE, readonly=True, disc=True))
        return GuestOrder(
            purpose=_purpose(definition),
            title=f"installation of base {definition.base}",
            folder=folder,
            arch=arch,
            facts=self.around.facts,
            profile=profile,
            memory=memory(self.order),
            vcpus=max(1, min(_VCPUS, self.around.facts.cpus, profile.max_vcpus)),
            firmware=Firmware.EFI,
            disks=tuple(disks),
            kernel=KernelBoot(kernel, initrd, self._words()),
            ports=tuple(port for port in (PORT, signs.log) if port),
            network=self.way.network if self.way else None,
        )

    @property
    def _appended(self) -> bool:
        """Whether the answer goes into the initramfs. Ubuntu's installer does not run there; Anaconda can have it from a disk,
        for the case that its initramfs is of a kind that nothing can be appended to."""
        match self.order.definition.builder:
            case Builder.KICKSTART:
                return appendable(self.media.initrd)
            case Builder.PRESEED:
                return True
            case Builder.AUTOINSTALL:
                return False

    def _words(self) -> str:
        return _MACHINE_WORDS[self.order.arch] + self._installer_words(_CONSOLES[self.order.arch])

    def _installer_words(self, console: str) -> str:
        match self.order.definition.builder:
            case Builder.KICKSTART:
                tree, label = medium.tree_of(self.order), self.media.label
                answer, proxy = f"/{anaconda.ANSWER}" if self._appended else "", self.way.proxy if self.way else ""
                tree = plain_http(tree) if proxy else tree
                return anaconda.words(console, tree=tree, disc=label, answer=answer, proxy=proxy)
            case Builder.PRESEED:
                return debian.words(console)
            case Builder.AUTOINSTALL:
                return ubuntu.words(console)

    def _explained(self, failure: Failure, logs: Path) -> PocketcloudError:
        definition = self.order.definition
        lines = [_masked(line, self.answer.secrets) for line in (failure.why, *failure.lines)]
        text = f"base {definition.base} ({self.order.arch}) was not built: {lines[0]}\n"
        text += "".join(f"  {line}\n" for line in lines[1:]) + f"all that it said is in {logs}"
        said = "\n".join(lines)
        if failure.fault is Fault.FULL:
            return NoSpace(text, hint="remove labs or bases that are not needed, or move the kit to a larger disk")
        if failure.fault in (Fault.SILENT, Fault.LATE):
            hint = "look at the end of its console there; a slow computer or line gets more time with a profile's `install:`"
            return NotReady(text, hint=hint)
        if NO_MEMORY.search(said):
            return NoSpace(text, hint="give its machine more: `requires: {memory: ...}` in the base's definition")
        if NO_SPACE.search(said):
            return NoSpace(text, hint="give the base a larger `size:` in its definition")
        return PartlyDone(text, hint="nothing half-made is left; when the cause is gone, run it again")


def _written(path: Path, content: bytes, target: str) -> DiskSpec:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return DiskSpec(target, path, "raw", DISPOSABLE, readonly=True)


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, answers.MASK)
    return text


def _purpose(definition: InstallDefinition) -> Name:
    return Name(f"install-{definition.base}"[:31])
