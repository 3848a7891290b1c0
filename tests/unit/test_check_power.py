"""Checks of what puts a computer to sleep: lid, battery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pocketcloud.check import State
from pocketcloud.check.fixes import carry_out
from pocketcloud.errors import Refused
from pocketcloud.system import Completed, run
from tests.computers import Computer
from tests.host_trees import plant, x86_laptop


@pytest.fixture
def laptop(tmp_path: Path) -> Computer:
    return Computer(tmp_path, x86_laptop("debian-13"))


@pytest.mark.parametrize(
    ("files", "state", "evidence"),
    [
        ({}, State.WARN, "closing the lid: suspend, on mains: suspend"),
        ({"etc/systemd/logind.conf": "[Login]\n#HandleLidSwitch=ignore\n"}, State.WARN, "closing the lid: suspend"),
        ({"etc/systemd/logind.conf": "[Login]\nHandleLidSwitch=ignore\n"}, State.OK, "closing the lid: ignore, on mains: ignore"),
        ({"usr/lib/systemd/logind.conf.d/a.conf": "[Login]\nHandleLidSwitch = lock\n"}, State.OK, "closing the lid: lock"),
        (
            {
                "usr/lib/systemd/logind.conf.d/a.conf": "HandleLidSwitch=ignore\n",
                "etc/systemd/logind.conf.d/a.conf": "HandleLidSwitch=hibernate\n",
                "etc/systemd/logind.conf": "HandleLidSwitch=lock\n",
            },
            State.WARN,
            "closing the lid: hibernate",
        ),
        ({"etc/systemd/logind.conf": "HandleLidSwitchExternalPower=ignore\n"}, State.WARN, "suspend, on mains: ignore"),
    ],
)
def test_a_lid_that_takes_the_lab_to_sleep(laptop: Computer, files: Mapping[str, str], state: State, evidence: str) -> None:
    plant(laptop.root, {"sys/class/power_supply/BAT0/type": "Battery", **files})
    check = laptop.checks()["lid"]
    assert check.state is state
    assert evidence in check.evidence
    assert bool(check.remedy) == (state is State.WARN)


def test_what_is_said_of_the_lid_cures_it(laptop: Computer) -> None:
    plant(laptop.root, {"sys/class/power_supply/BAT0/type": "Battery"})
    check = laptop.checks()["lid"]
    run(["sh", "-ec", check.remedy[0].replace("/etc", f"{laptop.root}/etc")])
    assert laptop.checks()["lid"].state is State.OK
    made = laptop.root / "etc/systemd/logind.conf.d/pocketcloud.conf"
    made.unlink()
    done: list[tuple[str, ...]] = []

    def recorded(argv: Sequence[str | Path], **_: object) -> Completed:
        done.append(tuple(map(str, argv)))
        return Completed(tuple(map(str, argv)), 0, "", "")

    carry_out(check.fix, recorded, laptop.root)
    assert laptop.checks()["lid"].state is State.OK
    assert done == [("systemctl", "kill", "-s", "HUP", "systemd-logind")]
    assert "rm /etc/systemd/logind.conf.d/pocketcloud.conf && systemctl kill" in made.read_text()
    carry_out(check.fix, recorded, laptop.root)
    made.write_text("[Login]\n")
    with pytest.raises(Refused, match="was not written by pocketcloud"):
        carry_out(check.fix, recorded, laptop.root)
    assert made.read_text() == "[Login]\n"


def test_a_battery_counts_only_if_it_is_the_computers(laptop: Computer) -> None:
    supplies = "sys/class/power_supply"
    plant(laptop.root, {f"{supplies}/mouse/type": "Battery", f"{supplies}/mouse/scope": "Device"})
    assert laptop.checks()["battery"].state is State.NOT_APPLICABLE
    plant(laptop.root, {f"{supplies}/BAT0/type": "Battery", f"{supplies}/AC/type": "Mains", f"{supplies}/AC/online": "0"})
    assert laptop.checks()["battery"].state is State.WARN
    plant(laptop.root, {f"{supplies}/AC/online": "1"})
    assert laptop.checks()["battery"].state is State.OK


@pytest.mark.parametrize(
    ("files", "state", "words"),
    [
        ({}, State.OK, "when idle: ignore"),
        ({"etc/systemd/logind.conf.d/x.conf": "[Login]\nIdleAction=lock\n"}, State.OK, "when idle: lock"),
        ({"etc/systemd/logind.conf": "[Login]\nIdleAction = suspend\nIdleActionSec=20min\n"}, State.WARN, "when idle: suspend"),
    ],
)
def test_a_computer_that_sleeps_when_idle_takes_the_lab_along(
    laptop: Computer, files: Mapping[str, str], state: State, words: str
) -> None:
    plant(laptop.root, files)
    check = laptop.checks()["idle"]
    assert check.state is state
    assert words in check.evidence
    if state is State.WARN:
        run(["sh", "-ec", check.remedy[0].replace("/etc", f"{laptop.root}/etc")])
        assert laptop.checks()["idle"].state is State.OK


def test_masked_sleep_is_no_sleep(laptop: Computer) -> None:
    plant(laptop.root, {"sys/class/power_supply/BAT0/type": "Battery", "etc/systemd/logind.conf": "IdleAction=suspend\n"})
    assert laptop.checks()["lid"].state is State.WARN
    (laptop.root / "etc/systemd/system/sleep.target").symlink_to("/dev/null")
    checks = laptop.checks()
    assert (checks["lid"].state, checks["idle"].state) == (State.OK, State.OK)
    assert "sleep.target is masked" in checks["lid"].evidence
