"""The space of a kit, counted and shown; and what is read of a disk's discards. Pools are in tests/rig/inside/test_space.py."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.cli import kit_space as cli
from pocketcloud.errors import NoSpace
from pocketcloud.events import Event
from pocketcloud.hypervisor import Hypervisor
from pocketcloud.kit.attached import Places
from pocketcloud.kit.directory import init_directory
from pocketcloud.kit.links import LinkState
from pocketcloud.kit.space import Gauge, Holding, Role, gauges_of, holdings, kit_space, layered, space_warning
from pocketcloud.kit.trim import read_device, read_fstrim, trim_kit
from pocketcloud.model.inventory import Domain, DomainState, Volume
from pocketcloud.model.kit import Kit, Manifest
from pocketcloud.model.machine import Mark
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.records import InstanceFiles, write_record
from pocketcloud.storage import Usage, open_storage
from pocketcloud.storage.discards import read_free
from pocketcloud.storage.thin_shares import Share, read_shares
from pocketcloud.system import Completed
from tests.contract.stores import filled
from tests.plans import raise_lab
from tests.simulation import Host, base, lab, machine

NOW = "2024-01-01T00:00:00+00:00"


@pytest.fixture
def kit() -> Iterator[Kit]:
    """A kit in a folder that QEMU could reach, which pytest's is not."""
    folder = Path(mkdtemp(prefix="pocketcloud-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield init_directory(Places(folder / "default", folder / "run"), folder / "default", "k", now=NOW)
    shutil.rmtree(folder)


def on_lvm(path: Path) -> Kit:
    return Kit(Manifest(1, str(uuid.uuid4()), Name("k"), NOW, "0", "lvm"), path, Medium.USB, "pc_none", (Path("/dev/none"),))


# -- who holds what


def raised(kit: Kit) -> tuple[Host, list[Volume]]:
    """A lab that is up, its record in the kit; each volume holds 1 MiB by itself."""
    host = Host.with_bases(base())
    raise_lab(lab(web=machine("front", provision="x", disks=["data"]), db=machine("front", provision="x")), host)
    assert host.record is not None
    files = InstanceFiles(kit, "demo")
    files.make()
    write_record(files, host.record)
    return host, [replace(volume, used=MIB) for volume in host.inventory().volumes.values()]


def by_role(found: Sequence[Holding], role: Role) -> list[Holding]:
    return [held for held in found if held.role is role]


def test_every_volume_has_one_holder(kit: Kit) -> None:
    host, volumes = raised(kit)
    loose = Volume("lab.demo.web.root.g9", Path("/x"), "raw", GIB, MIB, sealed=False, parent=None)
    spare = replace(loose, name="lab.demo.web.root.g10", spare=True)
    found = holdings(kit, [*volumes, loose, spare], list(host.bases.values()), layered(volumes))
    held = [volume for holding in found for volume in holding.volumes]
    assert sorted(held) == sorted(volume.name for volume in (*volumes, loose, spare))
    (base_held,), (lab_held,) = by_role(found, Role.BASE), by_role(found, Role.LAB)
    (snapshot,), (leftover,) = by_role(found, Role.SNAPSHOT), by_role(found, Role.LEFTOVER)
    assert set(base_held.volumes) == {made.volume for made in host.bases.values()}
    assert host.record is not None
    assert set(lab_held.volumes) == {v for made in host.record.machines.values() for v in made.disks.values()}
    assert snapshot.name == "demo@clean"
    assert leftover.volumes == ("lab.demo.web.root.g9",)
    assert {held.name for held in by_role(found, Role.SPARE)} == {"demo"}
    assert lab_held.exclusive == 3 * MIB, "three live disks, on which nothing stands"
    assert snapshot.exclusive == 0, "the live disks stand on it"


def test_of_a_lab_whose_record_is_damaged_nothing_is_a_leftover(kit: Kit) -> None:
    host, volumes = raised(kit)
    InstanceFiles(kit, "demo").record.write_text("{")
    found = holdings(kit, volumes, list(host.bases.values()), layered(volumes))
    assert by_role(found, Role.LEFTOVER) == []
    (lab_held,) = by_role(found, Role.LAB)
    assert len(lab_held.volumes) == len(volumes) - 1


def test_without_any_record_all_is_left_over(kit: Kit) -> None:
    _, volumes = raised(kit)
    shutil.rmtree(InstanceFiles(kit, "demo").folder)
    found = holdings(kit, volumes, [], layered(volumes))
    assert {held.role for held in found} == {Role.LEFTOVER}


@st.composite
def forests(draw: st.DrawFn) -> list[Volume]:
    """Volumes that stand on earlier ones, or on nothing, or on something that is gone."""
    made: list[Volume] = []
    for number in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([None, "gone", *(volume.name for volume in made)]))
        used = draw(st.one_of(st.none(), st.integers(0, GIB)))
        made.append(Volume(f"v{number}", Path("/x"), "qcow2", GIB, used, sealed=False, parent=parent))
    return made


@given(forests())
def test_what_is_counted_as_own_is_what_comes_back(volumes: list[Volume]) -> None:
    counted = layered(volumes)
    used = {volume.name: volume.used or 0 for volume in volumes}
    parents = {volume.parent for volume in volumes}
    for volume in volumes:
        own, shared = counted(volume)
        assert own == (0 if volume.name in parents else used[volume.name])
        chain, current = 0, next((v for v in volumes if v.name == volume.name), None)
        while current is not None:
            chain += used[current.name]
            current = next((v for v in volumes if v.name == current.parent), None)
        assert (own or 0) + (shared or 0) == chain


def test_a_circle_of_volumes_is_counted_to_an_end() -> None:
    one = Volume("a", Path("/x"), "qcow2", GIB, 1, sealed=True, parent="b")
    two = Volume("b", Path("/x"), "qcow2", GIB, 2, sealed=True, parent="a")
    assert layered([one, two])(one) == (0, 3)


@pytest.mark.parametrize("headers", ["", "DEV  MAPPED EXCLUSIVE SHARED\n"])
def test_shares_are_read_whatever_stands_around_them(headers: str) -> None:
    assert read_shares(f"{headers}  1   65536 65536 0 \n\n12 131072 0 131072\nnonsense\n") == {
        1: Share(65536, 65536, 0),
        12: Share(131072, 0, 131072),
    }
    assert read_shares("") == {}


# -- what no volume uses


def dumped(total: int, mappings: Sequence[tuple[int, int]]) -> str:
    """What thin_dump says of a pool with these mappings (begin, length), in the shapes that it has for them."""
    lines = [
        f'<superblock uuid="" time="0" transaction="5" flags="0" version="2" data_block_size="128" nr_data_blocks="{total}">'
    ]
    lines += ['<def name="1">'] if len(mappings) > 1 else []
    for number, (begin, length) in enumerate(mappings):
        if length == 1:
            lines.append(f'    <single_mapping origin_block="{number}" data_block="{begin}" time="0"/>')
        else:
            lines.append(f'    <range_mapping origin_begin="{number}" data_begin="{begin}" length="{length}" time="1"/>')
    lines += ["</def>"] if len(mappings) > 1 else []
    return "\n".join([*lines, '<device dev_id="1" mapped_blocks="1"><ref name="1"/></device>', "</superblock>", ""])


@given(st.data(), st.integers(1, 200))
def test_free_is_what_no_mapping_names(data: st.DataObject, total: int) -> None:
    begins = st.integers(0, total - 1)
    mappings = [(b, data.draw(st.integers(1, total - b))) for b in data.draw(st.lists(begins, max_size=9))]
    free = read_free(dumped(total, mappings))
    used = {chunk for begin, length in mappings for chunk in range(begin, begin + length)}
    named = [chunk for begin, length in free.runs for chunk in range(begin, begin + length)]
    assert sorted(used | set(named)) == list(range(total))
    assert len(named) == len(set(named)) == total - len(used)
    assert (free.chunk, free.total, free.used) == (65536, total, len(used))


@given(st.integers(1, 400))
def test_a_dump_that_is_cut_off_is_not_used(cut: int) -> None:
    text = dumped(100, [(3, 4), (9, 1)]).rstrip()
    with pytest.raises(ValueError, match="not whole"):
        read_free(text[: max(0, len(text) - cut)])


def test_a_mapping_outside_of_the_pool_is_not_believed() -> None:
    with pytest.raises(ValueError, match="outside"):
        read_free(dumped(10, [(8, 3)]))


# -- gauges, bars, warnings


def test_a_folder_has_no_marks_and_a_pool_has(kit: Kit, tmp_path: Path) -> None:
    usage = Usage(100, 60, 30, 1000, 700)
    assert gauges_of(kit, usage) == (Gauge("space", 70, 100),), "what is reserved for root is not free"
    assert gauges_of(on_lvm(tmp_path), usage) == (Gauge("data", 60, 100, 80, 90), Gauge("metadata", 700, 1000, 70, 75))


@given(st.integers(0, 2 * GIB), st.integers(0, GIB), st.sampled_from([(0, 0), (80, 90), (70, 75)]))
def test_a_bar_is_as_long_as_any_other(used: int, size: int, marks: tuple[int, int]) -> None:
    gauge = Gauge("data", used, size, *marks)
    drawn = cli.bar(gauge)
    assert len(drawn) == len(cli.bar(Gauge("data", 0, 100)))
    assert ("#" in drawn) == (gauge.percent > 0)
    if gauge.percent >= 100:
        assert "." not in drawn


def test_there_is_no_warning_where_there_is_no_answer(kit: Kit, tmp_path: Path) -> None:
    def silent(argv: Sequence[str | Path], **_options: object) -> Completed:
        return Completed(tuple(map(str, argv)), 1, "", "no such device")

    assert space_warning(kit) == ""
    assert space_warning(on_lvm(tmp_path), silent) == ""


@pytest.mark.parametrize(
    ("figures", "mode", "words"),
    [
        ("100/1000 790/1000", "rw", ""),
        ("100/1000 800/1000", "rw", "data 80 % used (limit 80 %)"),
        ("700/1000 100/1000", "rw", "metadata 70 % used"),
        ("100/1000 1000/1000", "out_of_data_space", "data 100 % used"),
        ("100/1000 100/1000", "ro", "pocketcloud kit repair"),
    ],
)
def test_a_pool_that_fills_up_is_warned_of(tmp_path: Path, figures: str, mode: str, words: str) -> None:
    def told(argv: Sequence[str | Path], **_options: object) -> Completed:
        text = f"0 8192 thin-pool 3 {figures} - {mode} discard_passdown error_if_no_space - 1024"
        return Completed(tuple(map(str, argv)), 0, text, "")

    said = space_warning(on_lvm(tmp_path), told)
    assert words in said
    assert bool(said) == bool(words)


# -- the links of the chain


def sysfs(root: Path, largest: int, mode: str = "") -> Path:
    """A root with the disk sdx."""
    queue = root / "sys/class/block/sdx/queue"
    queue.mkdir(parents=True)
    (queue / "discard_max_bytes").write_text(f"{largest}\n")
    if mode:
        scsi = root / "sys/class/block/sdx/device/scsi_disk/6:0:0:0"
        scsi.mkdir(parents=True)
        (scsi / "provisioning_mode").write_text(f"{mode}\n")
    return root


@pytest.mark.parametrize(
    ("largest", "mode", "state", "words"),
    [
        (GIB, "unmap", LinkState.PASSED, "(unmap)"),
        (GIB, "", LinkState.PASSED, "up to 1 GiB"),
        (4096, "unmap", LinkState.ENDS, "smaller than the pool's chunks"),
        (0, "", LinkState.ENDS, "takes no discards"),
        (0, "full", LinkState.ENDS, "provisioning_mode full"),
    ],
)
def test_a_disk_says_what_it_takes(tmp_path: Path, largest: int, mode: str, state: LinkState, words: str) -> None:
    link = read_device(Path("/dev/sdx1"), "sdx", 65536, sysfs(tmp_path, largest, mode))
    assert link.state is state
    assert words in link.text
    assert ("sg_vpd -p lbpv /dev/sdx`" in link.hint) == (mode == "full"), "nothing is switched on by itself"


def test_a_disk_that_is_gone_takes_nothing(tmp_path: Path) -> None:
    assert read_device(Path("/dev/sdx"), "", 65536, tmp_path).state is LinkState.ENDS


@pytest.mark.parametrize(
    ("code", "out", "err", "state", "words"),
    [
        (0, "/x/media: 10 MiB (10485760 bytes) trimmed\n", "", LinkState.PASSED, "10 MiB trimmed"),
        (0, "", "", LinkState.PASSED, "trimmed"),
        (1, "", "fstrim: /x: the discard operation is not supported\n", LinkState.LEFT_OUT, "takes no discards"),
        (1, "", "fstrim: /x: FITRIM ioctl failed: Input/output error\n", LinkState.LEFT_OUT, "Input/output error"),
        (-9, "", "", LinkState.LEFT_OUT, "-9"),
    ],
)
def test_what_fstrim_says(code: int, out: str, err: str, state: LinkState, words: str) -> None:
    link = read_fstrim("content", Completed(("fstrim",), code, out, err))
    assert (link.name, link.state) == ("content", state)
    assert words in link.text


@dataclass
class Guests:
    """Machines as trim meets them: with an agent, without one, failing; those that are off must not be asked."""

    kit_id: str
    asked: list[str] = field(default_factory=list)

    def domains(self, kit_id: str | None = None) -> tuple[Domain, ...]:
        assert kit_id == self.kit_id
        states = {"hears": DomainState.RUNNING, "deaf": DomainState.RUNNING, "fails": DomainState.RUNNING, "off": DomainState.OFF}
        return tuple(Domain(n, Mark("k", self.kit_id, "demo", n), state, {}, n == "hears") for n, state in states.items())

    def domain(self, name: str) -> Domain | None:
        return next((domain for domain in self.domains(self.kit_id) if domain.name == name), None)

    def trim(self, name: str) -> bool:
        self.asked.append(name)
        if name == "fails":
            raise NoSpace("its disk is full")
        return name == "hears"


def test_guests_are_asked_and_those_that_cannot_hear_are_named(kit: Kit, tmp_path: Path) -> None:
    guests, seen = Guests(kit.id), list[Event]()
    done = trim_kit(kit, open_storage(kit), cast("Hypervisor", guests), emit=seen.append, locks=tmp_path)
    assert guests.asked == ["hears", "deaf", "fails"]
    link = done.links[0]
    assert (link.name, link.state) == ("guests", LinkState.IN_PART)
    assert link.text == "1 trimmed; without a guest agent: demo.deaf, demo.fails (its disk is full)"
    assert "demo.off" in done.links[1].text
    assert done.ends_at == ""
    assert seen


def test_without_libvirt_the_rest_is_done(kit: Kit) -> None:
    done = trim_kit(kit, open_storage(kit), None, emit=lambda _event: None, locks=kit.path, unreachable="it is not there")
    assert [link.name for link in done.links] == ["guests", "files", "host"]
    assert "it is not there" in done.links[0].text


# -- the commands


def called(kit: Kit, *words: str) -> Result:
    places = {"POCKETCLOUD_DEFAULT_KIT": str(kit.path), "POCKETCLOUD_RUN_DIR": str(kit.path.parent / "run")}
    nowhere = {"LIBVIRT_DEFAULT_URI": "qemu+unix:///system?socket=/nonexistent"}
    commands = {"status": cli.status, "trim": cli.trim}
    done = CliRunner().invoke(commands[words[0]], words[1:], env=places | nowhere, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_status_shows_a_kit_in_a_folder(kit: Kit) -> None:
    open_storage(kit).create("base.alpha", 4 * MIB, filled(1, length=MIB))
    said = called(kit, "status").output
    assert all(word in said for word in ("name", kit.id, "space", "%", "leftover base.alpha", "no lab needs base.alpha"))
    answer: dict[str, Any] = json.loads(called(kit, "status", "-o", "json").stdout)
    assert {"manifest", "path", "usage", "volumes", "bases", "labs", "space", "leftovers"} <= set(answer)
    assert answer["leftovers"] == ["base.alpha"]
    assert answer["space"]["gauges"][0]["name"] == "space"


@pytest.mark.skipif(os.geteuid() != 0, reason="trimming a kit needs root")
def test_trim_says_where_the_chain_ends(kit: Kit) -> None:
    assert "guests" in called(kit, "trim").output
    assert json.loads(called(kit, "trim", "-o", "json", "--progress", "none").stdout)["ends_at"] == ""


def test_a_kit_without_volumes_is_counted(kit: Kit) -> None:
    space = kit_space(kit, open_storage(kit), [])
    assert (*space.holdings, *space.warnings, *space.leftovers) == ()
    assert [gauge.name for gauge in space.gauges] == ["space"]
