"""An instance's files and its record."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.errors import Refused
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.lab import NetworkKind
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.record import CLEAN, Memory, NetworkRecord, Record
from pocketcloud.records import (
    InstanceFiles,
    drop_memories,
    instances,
    is_written,
    read_record,
    remove_instance,
    remove_machine,
    sweep_states,
    sweep_unfinished,
    write_record,
)
from tests.plans import raise_lab
from tests.simulation import Host, base, lab, machine


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    (tmp_path / "nvram").mkdir()
    kit = Kit(Manifest(1, str(uuid.uuid4()), Name("k"), "now", "0", "qcow2"), tmp_path, Medium.DIR)
    return InstanceFiles(kit, "demo")


@pytest.fixture
def record() -> Record:
    """Of a lab that is up, with everything a record can hold."""
    host = Host.with_bases(base())
    raise_lab(lab(("z", "a"), web=machine("z", "a", provision="x", disks=["data"], address=None), db=machine("a")), host)
    assert host.record is not None
    return host.record


def test_a_record_is_read_as_it_was_written(files: InstanceFiles, record: Record) -> None:
    assert read_record(files) is None
    files.make()
    assert read_record(files) is None
    write_record(files, record)
    again = read_record(files)
    assert again == record
    assert again is not None
    assert list(again.machines[Name("web")].definition.networks) == ["z", "a"], "the order of the interfaces"
    assert list(again.machines) == list(record.machines)
    write_record(files, replace(record, generation=99))
    assert read_record(files) == replace(record, generation=99)


def test_networks_of_records_from_before_there_were_bridges_are_read(files: InstanceFiles, record: Record) -> None:
    files.make()
    write_record(files, record)
    raw = json.loads(files.record.read_text())
    for network in raw["networks"].values():
        del network["bridge"]
    files.record.write_text(json.dumps(raw))
    assert read_record(files) == record
    bridge = NetworkRecord(NetworkKind.BRIDGE, bridge="br0")
    write_record(files, bridged := replace(record, networks={Name("z"): bridge, Name("a"): record.networks[Name("a")]}))
    assert read_record(files) == bridged


def test_a_record_names_the_memory_of_its_states(files: InstanceFiles, record: Record) -> None:
    assert record.clean is not None
    assert record.memories() == frozenset()
    clean = record.clean
    part = replace(clean.machines[Name("web")], memory=Memory("demo.web@clean.save", 4096, "ab" * 32, {"QEMU": "7.2.0"}))
    record = replace(record, snapshots={Name(CLEAN): replace(clean, machines={**clean.machines, Name("web"): part})})
    files.make()
    write_record(files, record)
    assert read_record(files) == record
    assert record.memories() == {"demo.web@clean.save"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"{}", b"null", b"[" * 9999, b'{"schema": 1e999}'])
def test_a_damaged_record_is_refused_and_not_touched(files: InstanceFiles, content: bytes) -> None:
    files.make()
    files.record.write_bytes(content)
    with pytest.raises(Refused, match="record of lab demo cannot be read") as refused:
        read_record(files)
    assert "pocketcloud lab destroy demo" in refused.value.hint
    assert files.record.read_bytes() == content


def test_every_single_missing_or_strange_key_is_refused(files: InstanceFiles, record: Record) -> None:
    files.make()
    write_record(files, record)
    whole = json.loads(files.record.read_text())
    for key in ("schema", "instance", "lab", "created", "made_with", "generation"):
        files.record.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(Refused):
            read_record(files)
    files.record.write_text(json.dumps(whole | {"new": 1}))
    with pytest.raises(Refused, match="new"):
        read_record(files)


def test_a_record_of_a_newer_version_is_refused(files: InstanceFiles, record: Record) -> None:
    files.make()
    write_record(files, replace(record, schema=2))
    with pytest.raises(Refused, match="schema 2"):
        read_record(files)


def test_a_record_that_is_a_folder_is_refused(files: InstanceFiles) -> None:
    files.record.mkdir(parents=True)
    with pytest.raises(Refused, match="cannot be read"):
        read_record(files)


def test_only_folders_with_a_name_are_instances(files: InstanceFiles) -> None:
    assert instances(files.kit) == ()
    for name in ("demo", "b-2", "Bad", ".hidden", "a b", "a" * 32):
        (files.kit.path / "labs" / name).mkdir(parents=True)
    (files.kit.path / "labs" / "file").touch()
    assert instances(files.kit) == ("b-2", "demo")


def test_keys_are_nobody_s_business(files: InstanceFiles) -> None:
    files.make()
    files.make()
    modes = {path.name: path.stat().st_mode & 0o777 for path in files.folder.iterdir()}
    assert modes == {"seed": 0o755, "console": 0o755, "keys": 0o700}
    assert files.memory("web").parent.stat().st_mode & 0o777 == 0o700


def fill(files: InstanceFiles, machine: str) -> list[Path]:
    files.make()
    key = files.host_key(machine)
    made = [files.seed(machine), key, key.with_name(f"{machine}.pub"), files.console(machine), files.memory(machine)]
    made += [files.nvram(machine), files.nvram(machine, "clean"), files.kept_memory(machine, "clean", 2)]
    for path in made:
        path.write_text("x")
    return made


def test_a_machine_s_files_go_and_no_other_s(files: InstanceFiles) -> None:
    other = InstanceFiles(files.kit, "demo-2")
    mine = fill(files, "web")
    kept = [*fill(files, "web-2"), *fill(files, "w"), *fill(other, "web")]
    assert set(files.nvrams("web")) == {files.nvram("web"), files.nvram("web", "clean")}
    remove_machine(files, "web")
    remove_machine(files, "web")
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in kept)


def test_an_instance_s_files_go_and_no_other_s(files: InstanceFiles, record: Record) -> None:
    other = InstanceFiles(files.kit, "demo-2")
    mine, kept = fill(files, "web"), fill(other, "web")
    write_record(files, record)
    remove_instance(files)
    remove_instance(files)
    assert not files.folder.exists()
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in kept)


def with_memory(record: Record, machine: str, file: Path) -> Record:
    """The record with that file as the machine's memory in `clean`."""
    assert record.clean is not None
    parts = {n: replace(p, memory=None) if n != machine else p for n, p in record.clean.machines.items()}
    parts[Name(machine)] = replace(parts[Name(machine)], memory=Memory(file.name, 1, "ab" * 32, {"QEMU": "7.2.0"}))
    return replace(record, snapshots={Name(CLEAN): replace(record.clean, machines=parts)})


def test_memory_that_no_record_names_is_swept_and_that_of_a_state_is_kept(files: InstanceFiles, record: Record) -> None:
    other = InstanceFiles(files.kit, "demo-2")
    kept = [path for path in fill(files, "web") if path != files.nvram("web", "clean")] + fill(other, "web")
    loose = [files.kept_memory("web", "clean", 3), files.kept_memory("web", "gone", 2), files.kept_memory("db", "clean", 2)]
    for path in loose:
        path.write_text("unfinished, or forgotten")
    sweep_states(files, with_memory(record, "web", files.kept_memory("web", "clean", 2)))
    assert not any(path.exists() for path in loose)
    assert all(path.exists() for path in kept)
    sweep_unfinished(files)
    assert files.kept_memory("web", "clean", 2).exists(), "memory that a state names is no remains of a command"
    assert not files.memory("web").exists()


def test_a_kit_drops_all_memory_and_nothing_else(files: InstanceFiles, record: Record) -> None:
    other = InstanceFiles(files.kit, "other")
    for each in (files, other):
        fill(each, "web")
    write_record(files, with_memory(record, "web", files.kept_memory("web", "clean", 2)))
    other.record.write_text("damaged")
    assert drop_memories(files.kit) == (2, "")
    assert read_record(files) == record
    assert not files.kept_memories()
    assert not other.kept_memories()
    assert other.record.read_text() == "damaged"
    assert files.nvram("web", "clean").exists()
    assert drop_memories(files.kit) == (0, "")
    stuck = files.kept_memory("a", "clean", 9)
    stuck.mkdir()  # as little to be unlinked as a file of a disk that takes no more
    assert drop_memories(files.kit) == (0, f"{stuck}: Is a directory")
    stuck.rmdir()


def test_what_an_interruption_left_aside_is_swept(files: InstanceFiles) -> None:
    kept = [path for path in fill(files, "web") if path != files.memory("web")]
    other = InstanceFiles(files.kit, "demo-2")
    kept += fill(other, "web")
    left = [
        files.folder / ".lab.json.12.aside",
        files.folder / "keys" / ".web.12.aside",
        files.kit.path / "nvram" / ".demo.web.fd.9.aside",
    ]
    theirs = files.kit.path / "nvram" / ".demo-2.web.fd.9.aside"
    for path in (*left, theirs):
        path.write_text("half")
    sweep_unfinished(files)
    assert not any(path.exists() for path in (*left, files.memory("web")))
    assert all(path.exists() for path in (*kept, theirs))


@contextmanager
def closed_folder() -> Iterator[InstanceFiles]:
    """Files of an instance in a folder that an ordinary user may write to and not open, so that no name in it can be made
    durable."""
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        kit = Kit(Manifest(1, str(uuid.uuid4()), Name("k"), "now", "0", "qcow2"), folder, Medium.DIR)
        files = InstanceFiles(kit, "demo")
        files.folder.mkdir(parents=True)
        files.folder.chmod(0o733)
        yield files
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody who may not open a folder")
def test_a_record_that_lies_there_counts_although_it_could_not_be_made_durable(record: Record) -> None:
    with closed_folder() as files:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    write_record(files, record)
                except PermissionError:
                    code = 0 if is_written(files, record) and not is_written(files, replace(record, generation=99)) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert read_record(files) == record
