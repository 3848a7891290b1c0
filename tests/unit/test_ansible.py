"""The Ansible inventory: what is in it, in each form. tests/e2e/test_ansible.py gives it to a real Ansible."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pocketcloud.errors import Refused
from pocketcloud.lab.ansible import Format, Host, inventory
from pocketcloud.model.names import Name

WEB = Host(Name("web"), Name("debian-12"), "10.99.1.2")
ON = Host(Name("on"), Name("debian-12"), "10.99.1.3")
DB = Host(Name("db"), Name("rocky-9"), "10.99.1.4")
KIT = Path("/srv/my kit 100%")


def written(form: Format, *hosts: Host, kit: Path = KIT, instance: str = "demo-2") -> str:
    return inventory(Name(instance), hosts, kit / "keys/id_ed25519", kit / "labs/demo-2/known_hosts", form)


def variables(form: Format) -> dict[str, dict[str, str]]:
    """Each host's variables as Ansible would read them."""
    text = written(form, WEB, ON, DB)
    found: dict[str, dict[str, str]]
    if form is Format.INI:
        lines = [shlex.split(line) for line in text.partition("\n[")[0].splitlines() if line]
        found = {words[0]: dict(word.split("=", 1) for word in words[1:]) for words in lines}
    else:
        found = json.loads(text)["_meta"]["hostvars"] if form is Format.JSON else read(text)["all"]["hosts"]
    return found


def read(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    # Ansible reads YAML 1.1, where `on` is true.
    yaml.version = (1, 1)
    return yaml.load(StringIO(text))


@pytest.mark.parametrize("form", Format)
def test_every_form_says_the_same(form: Format) -> None:
    found = variables(form)
    assert found == variables(Format.JSON)
    assert list(found) == ["web", "on", "db"]
    assert found["db"]["ansible_host"] == "10.99.1.4"
    assert found["db"]["ansible_user"] == "root"
    words = shlex.split(found["db"]["ansible_ssh_common_args"])
    assert words[::2] == ["-o"] * (len(words) // 2)
    assert 'UserKnownHostsFile="/srv/my kit 100%%/labs/demo-2/known_hosts"' in words
    assert "StrictHostKeyChecking=yes" in words


def test_groups_of_the_lab_and_of_bases() -> None:
    script = json.loads(written(Format.JSON, WEB, ON, DB))
    assert script["demo_2"] == {"hosts": ["web", "on", "db"]}
    assert script["base_debian_12"] == {"hosts": ["web", "on"]}
    assert script["all"] == {"children": ["ungrouped", "demo_2", "base_debian_12", "base_rocky_9"]}
    file = read(written(Format.YAML, WEB, ON, DB))["all"]["children"]
    assert {name: list(group["hosts"]) for name, group in file.items()} == {
        "demo_2": ["web", "on", "db"],
        "base_debian_12": ["web", "on"],
        "base_rocky_9": ["db"],
    }
    ini = written(Format.INI, WEB, ON, DB)
    assert "\n[demo_2]\nweb\non\ndb\n\n[base_debian_12]\nweb\non\n\n[base_rocky_9]\ndb\n" in ini


def test_no_two_hosts_and_groups_have_one_name() -> None:
    def groups(instance: str, *hosts: Host) -> dict[str, list[str]]:
        found = json.loads(written(Format.JSON, *hosts, instance=instance))
        assert set(found["_meta"]["hostvars"]) == {name for group in found.values() for name in group.get("hosts", ())}
        return {name: group["hosts"] for name, group in found.items() if "hosts" in group}

    base = {"base_debian_12": ["web"]}
    assert groups("all", WEB) == {"lab_all": ["web"]} | base
    assert groups("web", WEB) == {"lab_web": ["web"]} | base
    assert groups("base-debian-12", WEB) == {"lab_base_debian_12": ["web"]} | base
    every = Host(Name("all"), Name("rocky-9"), "10.99.1.5")
    assert groups("demo", WEB, every) == {"demo": ["web", "all.demo"], "base_rocky_9": ["all.demo"]} | base
    assert "\nall.demo ansible_host=10.99.1.5 " in written(Format.INI, WEB, every, instance="demo")


def test_a_lab_without_machines_to_reach() -> None:
    assert json.loads(written(Format.JSON))["_meta"] == {"hostvars": {}}
    assert read(written(Format.YAML))["all"]["hosts"] == {}


@pytest.mark.parametrize(
    "folder", ['/srv/"kit"', "/srv/back\\slash", "/srv/${HOME}", "/srv/{{ x }}", "/srv/{% x", "/srv/new\nline", "srv"]
)
def test_paths_that_cannot_be_told_are_refused(folder: str) -> None:
    for form in Format:
        with pytest.raises(Refused):
            written(form, WEB, kit=Path(folder))


@pytest.mark.skipif(not shutil.which("ssh"), reason="the OpenSSH client is not installed")
def test_ssh_takes_the_arguments_as_they_are_meant() -> None:
    found = variables(Format.YAML)["web"]
    key = f'IdentityFile="{found["ansible_ssh_private_key_file"]}"'
    argv = ["ssh", "-G", "-F", "none", *shlex.split(found["ansible_ssh_common_args"]), "-o", key, found["ansible_host"]]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    options = dict(line.split(" ", 1) for line in said if " " in line)
    assert options["stricthostkeychecking"] in ("yes", "true")
    assert options["userknownhostsfile"].replace("%%", "%") == "/srv/my kit 100%/labs/demo-2/known_hosts"
    assert any("my kit 100%" in line and line.startswith("identityfile") for line in said)
