"""An Ansible inventory of a lab: values in, text out. Nothing is read or written here, and Ansible is not needed for it.

Sources: Ansible's guides "How to build your inventory" and "Developing dynamic inventory", the source of its inventory plugins
`yaml` and `ini` (2.19), and of its connection plugin `ssh`, which takes the arguments apart as a shell would.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pocketcloud.errors import Refused
from pocketcloud.model.names import Name
from pocketcloud.ssh_config import USERS_OWN, quoted_path
from pocketcloud.yaml_text import yaml_text

# Groups that Ansible has by itself.
_ITS_OWN = ("all", "ungrouped")
_BASE = "base_"


class Format(StrEnum):
    """How an inventory is written: `yaml` and `ini` are files, `json` is what an inventory script answers to `--list`."""

    YAML = "yaml"
    JSON = "json"
    INI = "ini"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that Ansible is to reach: its base names a group."""

    name: Name
    base: Name
    address: str


def inventory(instance: Name, hosts: Sequence[Host], key: Path, known_hosts: Path, form: Format) -> str:
    """The inventory, as text that ends with a newline: each machine is in a group named as the lab and one of its base, `-` being
    `_` there. Ansible has hosts and groups in one: a lab named as one of its machines, or as such a group, is `lab_NAME`, and a
    machine named as a group of Ansible's own is `NAME.LAB`. `key` is the private key to log in with, `known_hosts` the file of
    the machines' host keys: no other is accepted.
    Raises Refused if a path cannot be named in it."""
    common = {"ansible_user": "root", "ansible_ssh_private_key_file": _option(key), "ansible_ssh_common_args": _args(known_hosts)}
    names = {host.name: f"{host.name}.{instance}" if host.name in _ITS_OWN else str(host.name) for host in hosts}
    variables = {names[host.name]: {"ansible_host": str(ip_address(host.address)), **common} for host in hosts}
    ours = _group(instance)
    if ours in (*_ITS_OWN, *names.values()) or ours.startswith(_BASE):
        ours = f"lab_{ours}"
    groups: dict[str, list[str]] = {ours: []}
    for host in hosts:
        for group in (ours, f"{_BASE}{_group(host.base)}"):
            groups.setdefault(group, []).append(names[host.name])
    match form:
        case Format.JSON:
            answer: dict[str, Any] = {"_meta": {"hostvars": variables}, "all": {"children": ["ungrouped", *groups]}}
            return json.dumps(answer | {group: {"hosts": names} for group, names in groups.items()}, indent=2) + "\n"
        case Format.YAML:
            children: dict[str, Any] = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
            return yaml_text({"all": {"hosts": variables, "children": children}})
        case Format.INI:
            return _ini(variables, groups)


def _ini(variables: Mapping[str, Mapping[str, str]], groups: Mapping[str, Sequence[str]]) -> str:
    lines = [
        " ".join([name, *(shlex.quote(f"{key}={value}") for key, value in theirs.items())]) for name, theirs in variables.items()
    ]
    for group, names in groups.items():
        lines += ["", f"[{group}]", *names]
    return "\n".join(lines) + "\n"


def _group(name: str) -> str:
    """A name as a group's, which Ansible wants to be a variable's."""
    return name.replace("-", "_")


def _option(path: Path) -> str:
    """A path as Ansible puts it between quotes into an option of ssh."""
    quoted = quoted_path(path)[1:-1]
    # All values go through Jinja2 in Ansible.
    if any(odd in quoted for odd in ("{{", "{%", "{#")):
        raise Refused(f"Ansible cannot be told the path {str(path)!r}", hint="move the kit to a path without {{, {% and {#")
    return quoted


def _args(known_hosts: Path) -> str:
    options = (
        f'UserKnownHostsFile="{_option(known_hosts)}"',
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "HostKeyAlgorithms=ssh-ed25519",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
        # The kit's key is root's; who is not root comes in with a key of their own, which is in every guest, too.
        *(f"IdentityFile={path}" for path in USERS_OWN),
        "IdentitiesOnly=yes",
    )
    return shlex.join(word for option in options for word in ("-o", option))
