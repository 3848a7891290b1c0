"""Where an instance's files lie in its kit, and its record: read, replaced whole, removed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, NoSpace, Refused
from pocketcloud.files import is_unfinished, remove_tree, write_whole
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.record import RECORD_SCHEMA, Record


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """The paths of one instance; `labs/INSTANCE/` but for the UEFI variables, which lie in `nvram/`, and saved memory."""

    kit: Kit
    instance: str

    @property
    def folder(self) -> Path:
        """The instance's folder."""
        return self.kit.path / "labs" / self.instance

    @property
    def record(self) -> Path:
        """`lab.json`."""
        return self.folder / "lab.json"

    def seed(self, machine: str) -> Path:
        """The cloud-init seed, an ISO image."""
        return self.folder / "seed" / f"{machine}.iso"

    def host_key(self, machine: str) -> Path:
        """The private ssh host key; the public one lies beside it as `.pub`."""
        return self.folder / "keys" / machine

    def console(self, machine: str) -> Path:
        """What the serial console said since the last start."""
        return self.folder / "console" / f"{machine}.log"

    def memory(self, machine: str) -> Path:
        """The machine's saved memory, while a snapshot is taken."""
        return self._memories / f"{self.instance}.{machine}.save"

    def kept_memory(self, machine: str, state: str, generation: int) -> Path:
        """Where the machine's memory is kept with a state; the generation makes the name one that was never used before. A file
        that the record does not name is none, whole or not."""
        return self._memories / f"{self.instance}.{machine}@{state}-g{generation}.ram"

    def memory_file(self, name: str) -> Path:
        """The file of a memory that the record names."""
        return self._memories / name

    @property
    def _memories(self) -> Path:
        """Where there is room for them: a kit on a disk has a volume of its own for what is large."""
        return self.kit.path / "media" / "ram"

    @property
    def ssh_config(self) -> Path:
        """What `ssh -F` takes for the instance's machines."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """The machines' host keys, as ssh wants them."""
        return self.folder / "known_hosts"

    def nvram(self, machine: str, snapshot: str = "") -> Path:
        """The live UEFI variables, or those kept in a snapshot."""
        return self.kit.path / "nvram" / f"{self.instance}.{machine}{f'@{snapshot}' if snapshot else ''}.fd"

    def nvrams(self, machine: str = "") -> list[Path]:
        """All files of UEFI variables of a machine, or of the instance."""
        mine = f"{self.instance}.{machine}" if machine else f"{self.instance}."
        found = (self.kit.path / "nvram").glob(f"{mine}*.fd")
        return [path for path in found if not machine or path.name[len(mine)] in "@."]

    def make(self) -> None:
        """Make the folders; existing is success. QEMU has to reach the seeds and the consoles, nobody the keys."""
        folders = {"": 0o755, "seed": 0o755, "console": 0o755, "keys": 0o700}
        for path, mode in (*((self.folder / name, mode) for name, mode in folders.items()), (self._memories, 0o700)):
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            path.chmod(mode)

    def memories(self) -> list[Path]:
        """The files of memory that was saved while a snapshot was taken."""
        return list(self._memories.glob(f"{self.instance}.*.save"))

    def kept_memories(self, machine: str = "*") -> list[Path]:
        """The files of memory kept with states, of a machine or of the instance, whether the record names them or not."""
        return list(self._memories.glob(f"{self.instance}.{machine}@*.ram"))


def instances(kit: Kit) -> tuple[Name, ...]:
    """The names of the kit's instances that have a folder, whole or half."""
    try:
        found = sorted(entry.name for entry in (kit.path / "labs").iterdir() if entry.is_dir())
    except FileNotFoundError:
        return ()
    names = []
    for name in found:
        try:
            names.append(Name.parse(name))
        except ValueError:
            continue
    return tuple(names)


def read_record(files: InstanceFiles) -> Record | None:
    """The instance's record; None if there is none. Raises Refused if it is damaged or of a newer pocketcloud."""
    try:
        text = files.record.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"the record of lab {files.instance} cannot be read: {error.strerror}", hint="run as root") from None
    try:
        record = parse_json(text, Record, str(files.record))
    except BadDocument as error:
        raise Refused(
            f"the record of lab {files.instance} cannot be read: {error.message.splitlines()[0]}",
            hint=f"made by a newer pocketcloud? Else remove the lab: pocketcloud lab destroy {files.instance}",
        ) from error
    if record.schema != RECORD_SCHEMA:
        raise Refused(f"the record of lab {files.instance} has schema {record.schema}, this pocketcloud knows {RECORD_SCHEMA}")
    return record


def write_record(files: InstanceFiles, record: Record) -> None:
    """Replace the record: the commit. Old or new, never half."""
    write_whole(files.record, dump_json(record))


def is_written(files: InstanceFiles, record: Record) -> bool:
    """Whether this is the record that lies there."""
    with suppress(OSError):
        return files.record.read_bytes() == dump_json(record).encode()
    return False


def sweep_unfinished(files: InstanceFiles) -> None:
    """Remove what an interrupted command was writing aside, and memory that it had saved: that is never brought back, as the
    disks may have moved on. The caller holds the instance, so nobody else is at work there."""
    for path in (*files.folder.rglob(".*"), *(files.kit.path / "nvram").glob(f".{files.instance}.*")):
        if is_unfinished(path):
            path.unlink(missing_ok=True)
    for path in files.memories():
        path.unlink(missing_ok=True)


def sweep_states(files: InstanceFiles, record: Record) -> None:
    """Remove the UEFI variables and the memory of states that the record does not name any more, or not yet. The caller holds the
    instance."""
    named = record.named_nvrams() | record.memories()
    for path in (*(path for path in files.nvrams() if "@" in path.name), *files.kept_memories()):
        if path.name not in named:
            path.unlink(missing_ok=True)


def remove_instance(files: InstanceFiles) -> None:
    """Remove the instance's files, its record last, so that an interrupted removal is seen and goes on."""
    for path in (*files.nvrams(), *files.memories(), *files.kept_memories()):
        path.unlink(missing_ok=True)
    for name in ("seed", "console", "keys"):
        remove_tree(files.folder / name)
    remove_tree(files.folder)


def remove_machine(files: InstanceFiles, machine: str) -> None:
    """Remove the files of one machine; absent is success."""
    key = files.host_key(machine)
    own = (files.seed(machine), key, key.with_name(f"{key.name}.pub"), files.console(machine), files.memory(machine))
    for path in (*own, *files.nvrams(machine), *files.kept_memories(machine)):
        path.unlink(missing_ok=True)


def drop_memories(kit: Kit) -> tuple[int, str]:
    """Remove all memory that is kept with states of the kit's labs; the bytes of what was removed, and what kept files from being
    removed (empty: nothing). Nothing else of a state goes: it is brought back cold. The caller holds all labs."""
    freed, trouble = 0, ""
    for instance in instances(kit):
        files = InstanceFiles(kit, instance)
        with suppress(Refused, NoSpace, OSError):  # a record that names what is not there does no harm
            record = read_record(files)
            if record is not None and record.memories():
                write_record(files, record.without_memories())
        for path in files.kept_memories():
            try:
                size = path.stat().st_size
                path.unlink()
            except OSError as error:
                trouble = f"{path}: {error.strerror}"
            else:
                freed += size
    return freed, trouble
