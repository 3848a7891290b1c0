"""Answers for installers, whole, as files to read; each passes the checker of its distribution, and rules of our own.

After an intended change: POCKETCLOUD_GOLDEN=write pytest tests/golden, then read the difference.

Checkers: pykickstart with the syntax of each version (a deprecation is an error); debconf-set-selections -c; cloud-init's JSON
schema out of Debian's package. The schema of autoinstall is in no package; our list of its keys is AUTOINSTALL.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pocketcloud.bases.answers import Answer
from pocketcloud.model.base import Arch, Builder, InstallDefinition
from tests.answer_files import (
    HOSTILE,
    KEY,
    cached_site,
    hostile,
    hostile_site,
    installs,
    kickstart_version,
    public_site,
    read_kickstart,
    read_preseed,
    read_yaml,
    registered,
    script_in,
    steps_in,
    text_of,
)
from tests.debian_packages import unpacked

GOLDEN = Path(__file__).parent / "answers"
OUR_PORT = "/dev/virtio-ports/org.pocketcloud.install.0"
Case = tuple[InstallDefinition, Arch, Answer]


def cases() -> dict[str, Case]:
    """Every base as it is for each architecture; each once as with a cache and a proxy; one of each installer with values that
    mean harm, for each architecture."""
    found: dict[str, Case] = {}
    harmed = {"fedora-44", "rhel-10", "debian-13-installer", "ubuntu-2604"}
    for definition, arch in installs():
        name = f"{definition.base}.{arch}"
        found[name] = (definition, arch, text_of(definition, arch, public_site(definition, arch)))
        if arch is Arch.X86_64:
            found[f"{name}.cached"] = (definition, arch, text_of(definition, arch, cached_site(definition, arch)))
        if definition.base in harmed:
            bad = hostile(registered(definition) if definition.registration else definition)
            found[f"{name}.hostile"] = (bad, arch, text_of(bad, arch, hostile_site(bad, arch)))
    return found


CASES = cases()
of_all = pytest.mark.parametrize("name", CASES)


def of(builder: Builder) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, (d, _, _) in CASES.items() if d.builder is builder])


def test_there_are_enough() -> None:
    assert len(CASES) >= 40
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.{answer.name}" for name, (_, _, answer) in CASES.items()}


@of_all
def test_it_is_what_the_golden_file_says(name: str) -> None:
    _, _, answer = CASES[name]
    golden = GOLDEN / f"{name}.{answer.name}"
    if os.environ.get("POCKETCLOUD_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(answer.text, encoding="utf-8")
    assert answer.text == golden.read_text(encoding="utf-8")


# -- kickstart ------------------------------------------------------------------------------------------------------------

# The package of each service that may be switched on: Anaconda ends the installation at one that is not installed.
SERVICES = {"sshd": "openssh-server", "chronyd": "chrony", "qemu-guest-agent": "qemu-guest-agent"}
ONCE = r"text|poweroff|url|rhsm|cdrom|lang|keyboard|timezone|network|selinux|firewall|firstboot|skipx|rootpw|services|ignoredisk"
ONCE += r"|zerombr|clearpart|bootloader"


@of(Builder.KICKSTART)
def test_anaconda_of_that_version_understands_it(name: str) -> None:
    definition, arch, answer = CASES[name]
    handler = read_kickstart(answer.text, kickstart_version(definition))
    assert handler.reboot.action == 2, "it shall power off"
    assert handler.rootpw.lock
    assert not handler.user.userList
    packages = set(handler.packages.packageList)
    assert {SERVICES[service] for service in handler.services.enabled} <= packages
    assert {"cloud-init", "cloud-utils-growpart", "dracut-config-generic", "qemu-guest-agent"} <= packages
    assert ("grub2-pc" in packages) == (arch is Arch.X86_64)
    assert not packages & set(handler.packages.excludedList)
    assert not handler.packages.handleMissing, "a missing package is an error"
    disk = handler.bootloader.bootDrive
    assert (handler.ignoredisk.onlyuse, handler.clearpart.disklabel) == ([disk], "gpt")
    console = "ttyS0" if arch is Arch.X86_64 else "ttyAMA0"
    assert handler.bootloader.appendLine == f"console=tty0 console={console},115200 net.ifnames=0"


@of(Builder.KICKSTART)
def test_the_disk_has_partitions_for_both_firmwares_and_grows_at_its_end(name: str) -> None:
    definition, arch, answer = CASES[name]
    handler = read_kickstart(answer.text, kickstart_version(definition))
    parts = handler.partition.partitions
    both = ["biosboot", "/boot/efi", "/boot", "/"]
    assert [part.mountpoint for part in parts] == (both if arch is Arch.X86_64 else both[1:])
    # What grows comes last on the disk if all others have a fixed size (blivet's order).
    assert [bool(part.grow) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(part.size for part in parts) < definition.size >> 20
    assert not handler.logvol.lvList
    assert not handler.volgroup.vgList


@of(Builder.KICKSTART)
def test_each_command_of_a_kickstart_stands_once(name: str) -> None:
    definition, _, answer = CASES[name]
    commands = answer.text.partition("\n%packages")[0]
    said = re.findall(rf"^({ONCE})\b", commands, re.MULTILINE)
    assert len(said) == len(set(said))
    assert len([word for word in said if word in ("url", "rhsm", "cdrom")]) == 1, "one source of the system"
    assert ("rhsm" in said) == (definition.registration is not None)
    sections = re.findall(r"^%(?!end)\S+", answer.text, re.MULTILINE)
    expected = ["%packages", "%onerror", "%post", "%post"]
    assert sections == (expected if definition.family == "fedora" else ["%addon", *expected])
    assert answer.text.count("\n%end\n") == len(sections)
    assert "erroronfail" not in answer.text, "it waits for a key"


@of(Builder.KICKSTART)
def test_repositories_have_names_that_anaconda_has_not(name: str) -> None:
    definition, _, answer = CASES[name]
    repos = read_kickstart(answer.text, kickstart_version(definition)).repo.repoList
    assert len(repos) == len(definition.repos)
    assert all(repo.name.startswith("pocketcloud-") for repo in repos)


@pytest.mark.sampled(6)
@of(Builder.KICKSTART)
def test_ksvalidator_has_no_complaint(name: str, tmp_path: Path) -> None:
    definition, _, answer = CASES[name]
    ksvalidator = Path(sys.executable).with_name("ksvalidator")
    path = GOLDEN / f"{name}.{answer.name}"
    argv: list[str | Path] = [ksvalidator, "-v", kickstart_version(definition), path]
    env = os.environ | {"TMPDIR": str(tmp_path)}  # it leaves copies of what it read there
    said = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert (said.returncode, said.stdout.strip(), said.stderr) == (0, f"Checking kickstart file {path}", "")


# -- preseed --------------------------------------------------------------------------------------------------------------


@of(Builder.PRESEED)
def test_debconf_reads_it(name: str) -> None:
    if shutil.which("debconf-set-selections") is None:
        pytest.skip("no debconf here")
    said = subprocess.run(
        ["debconf-set-selections", "-c"], input=CASES[name][2].text, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


@of(Builder.PRESEED)
def test_the_installer_asks_nothing_and_each_question_is_answered_once(name: str) -> None:
    _, arch, answer = CASES[name]
    said = {question: value for question, (_, _, value) in read_preseed(answer.text).items()}
    assert (said["passwd/root-password-crypted"], said["passwd/make-user"]) == ("*", "false")
    assert said["debian-installer/exit/poweroff"] == "true"
    recipe = [part.split()[:4] for part in said["partman-auto/expert_recipe"].partition("::")[2].split(" . ")]
    kinds = re.findall(r"method\{ (\w+) \}", said["partman-auto/expert_recipe"])
    assert kinds == (["biosgrub", "efi", "format"] if arch is Arch.X86_64 else ["efi", "format"])
    assert [part[2] for part in recipe][-1] == "-1", "the last one takes the rest"
    assert all(part[0] == part[2] for part in recipe[:-1])
    assert said["partman-auto/expert_recipe"].count("mountpoint{") == said["partman-auto/expert_recipe"].count("{ / }") == 1
    packages = said["pkgsel/include"].split()
    assert len(packages) == len(set(packages))
    assert {"cloud-init", "cloud-guest-utils", "openssh-server", "qemu-guest-agent", "systemd-resolved"} <= set(packages)
    assert ("grub-pc-bin" in packages) == (arch is Arch.X86_64)


# -- autoinstall ----------------------------------------------------------------------------------------------------------

# Keys that may stand there, after autoinstall-schema.json of canonical/subiquity (2026-08-20) and, below `storage.config`,
# curtin's storage documentation. What is in the value's place: a type, or the keys below.
COMMANDS = (list,)
AUTOINSTALL: dict[str, Any] = {
    "version": int,
    "interactive-sections": list,
    "reporting": {"builtin": {"type": str}},
    "locale": str,
    "keyboard": {"layout": str},
    "timezone": str,
    "refresh-installer": {"update": bool, "channel": str},
    "source": {"id": str, "search_drivers": bool},
    "proxy": str,
    "network": {
        "version": int,
        "ethernets": {"any": {"match": {"name": str}, "dhcp4": bool, "routes": [{"to": str, "via": str}]}},
    },
    "apt": {
        "fallback": ("abort", "continue-anyway", "offline-install"),
        "geoip": bool,
        "preserve_sources_list": bool,
        "disable_suites": [str],
        "mirror-selection": {"primary": [{"uri": str, "arches": list}]},
        "security": [{"arches": list, "uri": str}],
    },
    "updates": ("security", "all"),
    "kernel-crash-dumps": {"enabled": bool},
    "user-data": dict,
    "ssh": {"install-server": bool, "authorized-keys": list, "allow-pw": bool},
    "storage": {"swap": {"size": int}, "config": list},
    "packages": [str],
    "late-commands": list,
    "error-commands": [str],
    "shutdown": ("reboot", "poweroff"),
}
STORAGE: dict[str, Any] = {
    "disk": {"type": str, "id": str, "path": str, "ptable": ("gpt",), "wipe": ("superblock-recursive",), "preserve": bool},
    "partition": {
        "type": str, "id": str, "device": str, "number": int, "size": (str, int), "flag": ("bios_grub", "boot"),
        "grub_device": bool, "preserve": bool,
    },
    "format": {"type": str, "id": str, "volume": str, "fstype": ("ext4", "fat32"), "preserve": bool},
    "mount": {"type": str, "id": str, "device": str, "path": str},
}  # fmt: skip


def allowed(value: Any, form: Any, at: str) -> None:
    if isinstance(form, dict):
        assert set(value) <= set(form), at
        for key, inner in value.items():
            allowed(inner, form[key], f"{at}.{key}")
    elif isinstance(form, list):
        for index, inner in enumerate(value):
            allowed(inner, form[0], f"{at}[{index}]")
    elif isinstance(form, tuple) and all(isinstance(choice, str) for choice in form):
        assert value in form, at
    else:
        assert isinstance(value, form), at


@of(Builder.AUTOINSTALL)
def test_ubuntus_installer_knows_every_key(name: str) -> None:
    document = read_yaml(CASES[name][2].text, (1, 1))
    assert document == read_yaml(CASES[name][2].text, (1, 2))
    assert set(document) == {"autoinstall"}
    said = document["autoinstall"]
    allowed(said, AUTOINSTALL, "autoinstall")
    for action in said["storage"]["config"]:
        allowed(action, STORAGE[action["type"]], action["id"])
    assert (said["version"], said["shutdown"], said["interactive-sections"]) == (1, "poweroff", [])


@of(Builder.AUTOINSTALL)
def test_the_root_of_ubuntu_is_last_and_takes_the_rest(name: str) -> None:
    _, arch, answer = CASES[name]
    actions = read_yaml(answer.text, (1, 1))["autoinstall"]["storage"]["config"]
    known = [action["id"] for action in actions]
    assert len(known) == len(set(known))
    for index, action in enumerate(actions):
        for key in ("device", "volume"):
            assert action.get(key) is None or action[key] in known[:index]
    parts = [action for action in actions if action["type"] == "partition"]
    assert [part["id"] for part in parts] == (["bios", "esp", "root"] if arch is Arch.X86_64 else ["esp", "root"])
    assert [part["number"] for part in parts] == list(range(1, len(parts) + 1))
    assert parts[-1]["size"] == -1
    assert {action["device"]: action["path"] for action in actions if action["type"] == "mount"} == {
        "root-format": "/",
        "esp-format": "/boot/efi",
    }


@of(Builder.AUTOINSTALL)
def test_cloud_init_accepts_what_the_installer_gets_and_gives(name: str) -> None:
    document = read_yaml(CASES[name][2].text, (1, 1))
    validate(document)
    validate(document["autoinstall"]["user-data"])


def validate(config: Any) -> None:
    """By cloud-init's own schema, draft 4, of Debian's package."""
    (path,) = unpacked("cloud-init").rglob("schema-cloud-config-v1.json")
    jsonschema.Draft4Validator(json.loads(path.read_text(encoding="utf-8"))).validate(config)


# -- what all have --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedora-44.x86_64", "ubuntu-2404.x86_64", "debian-12-installer.aarch64"])
def test_cloud_init_in_the_base_reads_only_the_seed(name: str, tmp_path: Path) -> None:
    definition, _, answer = CASES[name]
    path, script = "/etc/cloud/cloud.cfg.d/90-pocketcloud.cfg", script_in(definition, answer)
    (part,) = re.findall(rf"^(?:cat > {path} .*?\nEND|printf [^>]*? > {path})$", script, re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-c", part.replace(path, f"{tmp_path}/made")], check=True)
    config = read_yaml((tmp_path / "made").read_text(encoding="utf-8"), (1, 1))
    # The schema is for user-data, where a list of no users is pointless; here it says that the distribution's own is not made.
    validate({key: value for key, value in config.items() if key != "users"})
    assert config["datasource_list"] == ["NoCloud", "None"]
    assert config["users"] == []
    assert config["disable_root"] is False
    renderer = {"fedora": "network-manager", "ubuntu": "netplan", "debian": "networkd"}[definition.family]
    assert config["system_info"] == {"network": {"renderers": [renderer]}}


SEALED = (
    ": > /etc/machine-id", "/etc/hostname", "/etc/ssh/ssh_host_*", "/var/lib/systemd/random-seed", "/var/lib/cloud",
    "find /var/log -type f", "credential.secret", "systemctl enable", "fstrim.timer",
)  # fmt: skip


@of_all
def test_the_new_system_is_finished_and_sealed(name: str) -> None:
    definition, arch, answer = CASES[name]
    script = script_in(definition, answer)
    for word in SEALED:
        assert word in script, word
    assert ("--target=i386-pc" in script) == (arch is Arch.X86_64)
    steps = re.findall(r"^step '(.*)'$", script, re.MULTILINE)
    assert steps[0] == "partitions"
    assert steps[-1] == "sealing", "nothing is done after it"
    assert 'echo "FAIL $doing" > "$port"' in script
    assert answer.text.count("OK 0123456789ab") == 1


@of_all
def test_steps_and_patches_arrive_as_they_are(name: str) -> None:
    definition, _, answer = CASES[name]
    steps = steps_in(script_in(definition, answer))
    expected = {f"patch {n}": text for n, text in enumerate(definition.patches, 1)}
    expected |= {f"post {n}": text for n, text in enumerate(definition.post, 1)}
    assert {name: text.removesuffix("\n") for name, text in steps.items()} == {
        name: text.removesuffix("\n") for name, text in expected.items()
    }


@of_all
def test_no_address_of_the_build_stays_in_the_new_system(name: str) -> None:
    definition, _, answer = CASES[name]
    assert "10.77.0.1" not in script_in(definition, answer)
    assert "me:secret" not in answer.shown
    assert ("me:secret@" in answer.text) == name.endswith(".cached")


@of_all
def test_the_script_is_good_shell(name: str, tmp_path: Path) -> None:
    definition, _, answer = CASES[name]
    (tmp_path / "script").write_text(script_in(definition, answer), encoding="utf-8")
    subprocess.run(["sh", "-n", tmp_path / "script"], check=True)


def test_shellcheck_has_no_complaint(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    paths = []
    for base in ("fedora-44", "rhel-9", "debian-13-installer", "ubuntu-2604"):
        definition, _, answer = CASES[f"{base}.x86_64"]
        path = tmp_path / base
        path.write_text("#!/bin/sh\n" + script_in(definition, answer), encoding="utf-8")
        paths.append(path)
    said = subprocess.run(["shellcheck", *paths], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_hostile_values_are_there_and_mean_nothing() -> None:
    definition, arch, answer = CASES["rhel-10.x86_64.hostile"]
    handler = read_kickstart(answer.text, "RHEL10")
    assert handler.rhsm.activation_keys == [KEY]
    assert handler.rhsm.organization == "12345"
    assert KEY not in answer.shown
    assert HOSTILE in steps_in(script_in(definition, answer))["post 1"]
    assert arch is Arch.X86_64
