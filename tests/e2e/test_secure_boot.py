"""The lab `secure-boot`, really up: the guest says that it is on, the firmware refuses what is not signed, a reset brings the
variables back, whatever became of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.model.base import Arch
from tests.emulated import firmware
from tests.labkit import LabKit, lab_kit, raw_libvirt, until

# The first test counts the build of the base and the first start, which share a busy host.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

LAB, MACHINE = "secure-boot", "laptop"
LONG = 1800.0
STUDENT = "Student".encode("utf-16-le")
VARIABLES = "/sys/firmware/efi/efivars"
MARK = f"{VARIABLES}/Student-12345678-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        made.cli("base", "build", "debian-12", "--arch", "x86_64", timeout=LONG).expect(0)
        made.cli("lab", "up", LAB, timeout=LONG).expect(0)
        yield made


def inside(kit: LabKit, command: str, code: int = 0) -> str:
    return kit.cli("lab", "exec", LAB, MACHINE, "--", command, timeout=LONG).expect(code).out


def restarted(kit: LabKit, command: str) -> None:
    """Run a command in the machine and start it again from within, as a student would."""
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = inside(kit, boot)
    inside(kit, f"{command} && sync && systemctl reboot")

    def is_another() -> bool:
        ran = kit.cli("lab", "exec", LAB, MACHINE, "--", boot, timeout=LONG)
        return ran.code == 0 and ran.out != before

    until(is_another, "the machine is up again", within=LONG)


def console(kit: LabKit) -> str:
    return kit.files(LAB).console(MACHINE).read_text(encoding="utf-8", errors="replace")


def test_signed_is_started_and_unsigned_is_not(kit: LabKit) -> None:
    assert "Secure Boot is on" in inside(kit, "secure-boot")
    usual = inside(kit, "secure-boot").split()[-1]
    restarted(kit, "boot-once signed")
    assert inside(kit, "secure-boot").split()[-1] == "0bad", "the way of starting it works"
    assert "Access Denied" not in console(kit)
    restarted(kit, "boot-once unsigned")
    assert "Access Denied" in console(kit)
    assert inside(kit, "secure-boot").split()[-1] == usual


def test_a_reset_brings_back_what_a_student_broke(kit: LabKit) -> None:
    """Entries deleted and a variable added in the guest, where keys are protected; then all keys are lost."""
    keys = f"{VARIABLES}/PK-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    refused = inside(kit, f"chattr -i {keys}; rm {keys} 2>&1 || echo kept")
    assert "kept" in refused
    inside(kit, f"rm {VARIABLES}/Boot0*; printf '\\007\\000\\000\\000mine' > {MARK}; sync")
    domain = raw_libvirt().lookupByName(f"{kit.kit.name}.{LAB}.{MACHINE}")
    domain.destroy()
    nvram = kit.files(LAB).nvram(MACHINE)
    assert STUDENT in nvram.read_bytes()
    put(firmware(Arch.X86_64, secure=False)[1], nvram)
    domain.create()
    until(
        lambda: "is off" in kit.cli("lab", "exec", LAB, MACHINE, "--", "secure-boot", timeout=LONG).out, "it is up", within=LONG
    )

    kit.cli("lab", "reset", LAB, "-y", timeout=LONG).expect(0)
    assert "Secure Boot is on" in inside(kit, "secure-boot")
    assert "gone" in inside(kit, f"test -e {MARK} || echo gone")
    assert STUDENT not in nvram.read_bytes()


def test_memory_goes_with_the_variables_of_its_moment(kit: LabKit) -> None:
    """Last: the machine is woken with the variables that the firmware had in memory, not started with them."""
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = inside(kit, boot)
    kit.cli("lab", "snapshot", f"{LAB}@warm", "--ram", timeout=LONG).expect(0)
    assert inside(kit, boot) == before
    inside(kit, f"printf '\\007\\000\\000\\000mine' > {MARK}; sync")
    assert STUDENT in kit.files(LAB).nvram(MACHINE).read_bytes()
    kit.cli("lab", "restore", f"{LAB}@warm", "-y", timeout=LONG).expect(0)
    assert inside(kit, boot) == before, "it was booted"
    assert STUDENT not in kit.files(LAB).nvram(MACHINE).read_bytes()
    assert "Secure Boot is on" in inside(kit, "secure-boot")
    assert "gone" in inside(kit, f"test -e {MARK} || echo gone")


def put(source: Path, target: Path) -> None:
    """Replace a file's content, and leave its owner and mode."""
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)
