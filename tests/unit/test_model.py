"""Names, identities, sizes and times."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.model.data_disk import Disk
from pocketcloud.model.lab import ProvisionStep, Ready
from pocketcloud.model.names import NAME_PATTERN, Name, bridge_name, joined, mac_address, machine_uuid, network_uuid
from pocketcloud.model.sizes import GIB, KIB, MIB, TIB, Duration, Size, duration_text, progress_text, size_text
from tests.simulation import KIT_ID, machine

names = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda text: not text.endswith("\n"))


@given(st.text())
def test_a_name_follows_the_rule_or_is_none(text: str) -> None:
    if re.fullmatch(r"[a-z][a-z0-9-]{0,30}", text, re.ASCII):
        assert Name.parse(text) == text
    else:
        with pytest.raises(ValueError, match="a name starts with a-z") as refused:
            Name.parse(text)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("other", [None, 1, True, 1.5, ["a"], {"a": 1}, b"a"])
def test_what_is_no_text_is_no_name(other: object) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        Name.parse(other)


@given(st.lists(names, min_size=2, max_size=4))
def test_joined_names_can_be_taken_apart(parts: list[str]) -> None:
    assert joined(*parts).split(".") == parts


@given(names, names, names)
def test_identities_are_kept_apart(instance: str, one: str, other: str) -> None:
    found = machine_uuid(KIT_ID, instance, one)
    assert found == machine_uuid(KIT_ID, instance, one)
    assert found != network_uuid(KIT_ID, instance, one)
    assert found != machine_uuid(str(uuid.UUID(int=1)), instance, one)
    assert (found == machine_uuid(KIT_ID, instance, other)) == (one == other)
    assert len(bridge_name(KIT_ID, instance, one)) <= 15


def test_identities_stay_what_they_are() -> None:
    """A kit made by this version has them in its guests; another version must come to the same."""
    assert str(machine_uuid(KIT_ID, "demo", "web")) == "2e1cd939-faf5-5f3e-a389-7140f435a759"
    assert str(network_uuid(KIT_ID, "demo", "front")) == "538aad1f-ac0e-5768-8ab0-21b0354bd66f"
    assert [mac_address("demo", "web", index) for index in range(2)] == ["52:54:00:1e:be:50", "52:54:00:5d:70:81"]
    assert bridge_name(KIT_ID, "demo", "front") == "pc-647ff5a29a"


@given(names, names, st.integers(0, 20))
def test_macs_are_in_qemu_s_range(instance: str, name: str, index: int) -> None:
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac_address(instance, name, index))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1024B", 1024),
        ("1KiB", KIB),
        ("512MiB", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("2TiB", 2 * TIB),
        (4096, 4096),
    ],
)
def test_sizes(text: object, number: int) -> None:
    assert Size.parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "512",
            "512MB",
            "512mib",
            "-1MiB",
            "1e3MiB",
            "MiB",
            "0MiB",
            "0.0GiB",
            " 1GiB",
            "1GiB\n",
            "1  GiB",
            "9" * 500 + "TiB",
        ),
        *(0, -1, 1, 1023, True, None, 1.5, float("inf"), float("nan"), 1 << 63, 10**400, [], {}),
    ],
)
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size") as refused:
        Size.parse(text)
    assert len(str(refused.value)) < 200


@given(st.integers(1024, (1 << 63) - 1))
def test_a_size_is_shown_in_few_digits_and_near(number: int) -> None:
    shown = size_text(number)
    assert re.fullmatch(r"\d{1,7}(\.\d)? (B|KiB|MiB|GiB|TiB)", shown)
    value, unit = shown.split(" ")
    factor = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}[unit]
    assert abs(float(value) * factor - number) <= 0.051 * max(number, factor)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("0.5 s", 0.5), (7, 7), (0.1, 0.1), ("24h", 86400)]
)
def test_durations(text: object, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 min",
        "-5s",
        "0s",
        0,
        -1,
        "25h",
        86401,
        True,
        None,
        float("inf"),
        float("nan"),
        10**400,
        "9" * 500 + "h",
        [],
        "1s\n",
    ],
)
def test_durations_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="expected a time") as refused:
        Duration.parse(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (65, "1 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7320, "2 h 02 min"),
    ],
)
def test_times_for_people(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


@pytest.mark.parametrize(
    ("done", "total", "seconds", "shown"),
    [
        (0, GIB, 3.0, "0 B of 1 GiB, 0 MB/s"),
        (GIB // 2, GIB, 10.0, "512 MiB of 1 GiB, 54 MB/s, 10 s left"),
        (GIB // 8, GIB, 10.0, "128 MiB of 1 GiB, 13 MB/s, 1 min 10 s left"),
        (GIB, GIB, 0.0, "1 GiB of 1 GiB, 1073742 MB/s, 0.0 s left"),
        (2 * MIB, MIB, 1.0, "2 MiB of 1 MiB, 2 MB/s, 0.0 s left"),
        (0, 0, 0.0, "0 B of 0 B, 0 MB/s"),
    ],
)
def test_how_far_work_on_bytes_is(done: int, total: int, seconds: float, shown: str) -> None:
    assert progress_text(done, total, seconds) == shown


def test_what_needs_a_login() -> None:
    assert Ready().needs_ssh
    assert Ready(command="true", console="x").needs_ssh
    assert not Ready(tcp=80).needs_ssh
    assert not Ready(console="x").needs_ssh
    assert machine("n", provision="x").needs_ssh
    assert not machine("n").needs_ssh


def test_titles_of_provision_steps_fit_a_line() -> None:
    assert ProvisionStep(write="/etc/x", content="").title == "write /etc/x"
    assert ProvisionStep(run="\n  apt-get update\nmore").title == "run apt-get update"
    assert ProvisionStep(run="").title == "run "
    assert len(ProvisionStep(run="x" * 500).title) == 64


def test_disks_have_bounds() -> None:
    for size in (1, MIB - 1, 65 * TIB):
        with pytest.raises(ValueError, match="expected 1 MiB to 64 TiB"):
            Disk(Name("d"), Size(size))
