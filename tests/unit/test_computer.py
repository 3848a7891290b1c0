"""What tells computers and processors apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketcloud.host.computer import read_computer, read_processor

X86 = """\
processor\t: {0}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
microcode\t: {1}
cpu MHz\t\t: {2}
apicid\t\t: {0}
flags\t\t: fpu sse2 {3}
"""
ARM = """\
processor\t: {0}
BogoMIPS\t: {1}
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {2}
CPU revision\t: 4
"""


def root(folder: Path, **files: str) -> Path:
    """A host's root with these files; `__` in a name is a slash."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("machine_id", "machine-id")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_computers_are_told_by_their_system_and_their_board(tmp_path: Path) -> None:
    one = read_computer(root(tmp_path / "a", etc__machine_id="0123\n", sys__class__dmi__id__product_uuid="u-1\n"))
    assert one == read_computer(root(tmp_path / "b", etc__machine_id="0123\n", sys__class__dmi__id__product_uuid="u-1\n"))
    copied = root(tmp_path / "c", etc__machine_id="0123\n", sys__class__dmi__id__product_uuid="u-2\n")
    assert read_computer(copied) != one, "the same system on another board"
    assert read_computer(root(tmp_path / "d", etc__machine_id="4567\n", sys__class__dmi__id__product_uuid="u-1\n")) != one
    assert "0123" not in one


def test_a_computer_without_identity_is_another_after_each_start(tmp_path: Path) -> None:
    boot = "proc/sys/kernel/random/boot_id".replace("/", "__")
    one = read_computer(root(tmp_path / "a", **{boot: "b-1\n"}))
    assert one == read_computer(root(tmp_path / "b", **{boot: "b-1\n"}))
    assert one != read_computer(root(tmp_path / "c", **{boot: "b-2\n"}))
    same = [read_computer(root(tmp_path / n, etc__machine_id="0123\n", **{boot: f"{n}\n"})) for n in ("d", "e")]
    assert same[0] == same[1], "with an identity the start does not matter"


def test_a_processor_is_what_it_can_do(tmp_path: Path) -> None:
    def processor(name: str, content: str) -> str:
        return read_processor(root(tmp_path / name, proc__cpuinfo=content))

    known = processor("a", X86.format(0, "0x1", 2596, "avx") + X86.format(1, "0x1", 1200, "avx"))
    assert known.startswith("AMD EPYC, ")
    again = processor("b", X86.format(0, "0x1", 3100, "avx"))
    assert again == known, "how fast it is at this moment, and how many there are, is no part of it"
    assert processor("c", X86.format(0, "0x2", 2596, "avx")) == known
    assert processor("d", X86.format(0, "0x2", 2596, "")) != known, "microcode that took a feature away"
    arm = processor("e", ARM.format(0, "48.00", "0xd03"))
    assert arm == processor("f", ARM.format(0, "50.00", "0xd03") + ARM.format(1, "48.00", "0xd03"))
    assert arm != processor("g", ARM.format(0, "48.00", "0xd08"))
    assert arm != processor("h", ARM.format(0, "48.00", "0xd03") + ARM.format(1, "48.00", "0xd08"))


@pytest.mark.parametrize("said", ["", "nonsense", ":::"])
def test_odd_cpuinfo_is_no_error(tmp_path: Path, said: str) -> None:
    assert read_processor(root(tmp_path, proc__cpuinfo=said))


def test_this_computer() -> None:
    assert read_computer(Path("/")) == read_computer(Path("/"))
    assert read_processor(Path("/")) == read_processor(Path("/"))
