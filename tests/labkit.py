"""A throw-away kit with a tiny base, for tests that run the real command line on real QEMU and libvirt.

The guests are boot sectors (tests/bootsector.py): they print `hello from the boot sector` within a second under emulation.
Names are random; what carries the kit's id, or lies in its folder, is removed when the context ends, failed or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from pocketcloud.bases import records as base_records
from pocketcloud.hypervisor import xml
from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.kit.attached import Places
from pocketcloud.kit.directory import init_directory
from pocketcloud.kit.manifest import kit_at
from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.kit import Kit
from pocketcloud.model.machine import NetworkSpec
from pocketcloud.model.names import Name
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.specs import network_spec
from pocketcloud.storage import Storage, open_storage
from tests.bootsector import write_disk

TOP = Path(__file__).resolve().parent.parent
GREETING = "hello from the boot sector"
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished command: exit code (negative: the signal that ended it), standard output and error."""

    code: int
    out: str
    err: str

    def expect(self, code: int, *words: str) -> Ran:
        """Assert the exit code, that each of `words` was said on stderr or stdout, and that there is no traceback."""
        said = f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        assert "Traceback" not in self.err, said
        assert self.code == code, said
        for word in words:
            assert word.lower() in (self.err + self.out).lower(), f"{word!r} is missing in\n{said}"
        return self

    def json(self) -> dict[str, object]:
        """The answer of a command that was given `-o json`."""
        found: dict[str, object] = json.loads(self.out)
        return found


@dataclass
class LabKit:
    """A kit in `path`, attached in a run folder of its own (`run`). There is no default kit: `default` does not exist.

    `folder` holds it all, and is where QEMU can read. `env` is the environment of commands run by `cli` and `start`.
    """

    folder: Path
    kit: Kit
    env: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Where the kit is (or was made, if a test has moved it)."""
        return self.kit.path

    @property
    def run(self) -> Path:
        """The run folder: attached kits, locks."""
        return self.folder / "run"

    @property
    def places(self) -> Places:
        """Where the commands look for kits."""
        return Places(self.folder / "default", self.run)

    @property
    def storage(self) -> Storage:
        """The kit's store."""
        return open_storage(self.kit)

    def files(self, instance: str) -> InstanceFiles:
        """Where an instance's files lie."""
        return InstanceFiles(self.kit, instance)

    def network(self, instance: str, name: str) -> NetworkSpec:
        """A raised lab's network, as libvirt was told to make it."""
        record = read_record(self.files(instance))
        assert record is not None
        return network_spec(self.kit, record, Name(name))

    def add_base(self, name: str = "tiny", text: str = GREETING, *, counts: bool = False) -> Base:
        """Put a base into the kit whose machines print `text`, and with `counts` then count (see tests/bootsector.py)."""
        image = write_disk(self.folder / f"{name}.img", text, counts=counts)
        volume = f"base.{name}.{Arch.X86_64}.{secrets.token_hex(4)}"
        self.storage.create(volume, image.stat().st_size, lambda target: _fill(target, image.read_bytes()))
        image.unlink()
        base = Base(Name(name), Arch.X86_64, volume.rsplit(".", 1)[1], volume, Firmware.BIOS, "2024-01-01T00:00:00+00:00")
        base_records.write(self.kit, base)
        return base

    def lab(self, text: str, name: str = "lab.yaml") -> Path:
        """Write a lab file into the folder."""
        path = self.folder / name
        path.write_text(text)
        return path

    def argv(self, *arguments: str | Path) -> list[str]:
        """The real command line, without an installed script."""
        return [sys.executable, "-m", "pocketcloud", *map(str, arguments)]

    def cli(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        cwd: Path = TOP,
        timeout: float = PATIENCE,
    ) -> Ran:
        """Run `pocketcloud ARGUMENTS` to its end; `prefix` is a command that runs it (setpriv, unshare)."""
        argv = [*prefix, *self.argv(*arguments)]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=self.env | dict(env or {}),
            cwd=cwd,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start `pocketcloud ARGUMENTS`; `finish` waits for it, and the end of the context ends it."""
        process = subprocess.Popen(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self.env,
            cwd=TOP,
        )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = PATIENCE) -> Ran:
        """Wait for a started command."""
        out, err = process.communicate(timeout=timeout)
        return Ran(process.returncode, out, err)


@contextlib.contextmanager
def lab_kit(*bases: str, kit_folder: str = "kit") -> Iterator[LabKit]:
    """A kit with these tiny bases (none named: `tiny`), and nothing of it left afterwards."""
    # Not below a folder of mode 0700, as pytest's tmp_path is: QEMU runs as a user of its own.
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    name = f"pct{secrets.token_hex(4)}"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("POCKETCLOUD_", "LIBVIRT_", "PYTEST_"))}
    env |= {
        "POCKETCLOUD_DEFAULT_KIT": str(folder / "default"),
        "POCKETCLOUD_RUN_DIR": str(folder / "run"),
        "POCKETCLOUD_HOSTS_FILE": str(folder / "hosts"),
        "PYTHONPATH": str(TOP),
        "PYTHONWARNINGS": "error",
    }
    made: list[LabKit] = []
    try:
        places = Places(folder / "default", folder / "run")
        kit = LabKit(folder, init_directory(places, folder / kit_folder, name, now="2024-01-01T00:00:00+00:00"), env)
        made.append(kit)
        for base in bases or ("tiny",):
            kit.add_base(base)
        yield kit
    finally:
        for process in (process for kit in made for process in kit.processes):
            _end(process)
        remove_of_kits({kit.kit.id for kit in made} | _kit_ids(folder))
        for mount in sorted(_mounts_below(folder), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(folder)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def _kit_ids(folder: Path) -> set[str]:
    found = set()
    for path in folder.glob("*/kit.json"):
        with contextlib.suppress(Exception):
            found.add(kit_at(path.parent).id)
    return found


def _mounts_below(folder: Path) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def raw_libvirt() -> libvirt.virConnect:
    """libvirt itself, to look at what was done, and to do what others might do."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt.open("qemu:///system")


def remove_of_kits(kit_ids: set[str]) -> None:
    """Remove every domain and network with the mark of one of these kits, by libvirt's own means: ours may be what is broken."""
    connection = raw_libvirt()
    flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    for domain in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):
            if (mark := xml.read_domain(domain.XMLDesc(0)).mark) and mark.kit_id in kit_ids:
                _quietly(domain.destroy)
                domain.undefineFlags(flags)
    for network in connection.listAllNetworks():
        with contextlib.suppress(libvirt.libvirtError):
            if (mark := (found := xml.read_network(network.XMLDesc(0))).mark) and mark.kit_id in kit_ids:
                _quietly(network.destroy)
                network.undefine()
                Fences().remove(found.bridge)
    connection.close()


def _quietly(verb: Callable[[], object]) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        verb()


def until(true: Callable[[], bool], what: str, within: float = PATIENCE) -> None:
    """Wait until `true` says so; fails with `what` when it takes longer than `within` seconds."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not so after {within:.0f} s: {what}"
        time.sleep(0.05)


def _fill(target: Path, content: bytes) -> None:
    with target.open("r+b") as file:
        file.write(content)
