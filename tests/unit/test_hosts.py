"""What `check` says of many computers: each has its files, and what KVM and libvirt said there, in tests/hosts/NAME/host.yaml
with where that comes from, and beside it what is expected (POCKETCLOUD_GOLDEN=write renews it; read the difference)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pocketcloud.check import Check, State, failed, run_checks
from pocketcloud.host import read_facts
from pocketcloud.hypervisor import Hypervisor, HypervisorFacts
from pocketcloud.model.base import Arch
from pocketcloud.model.facts import Subnet
from pocketcloud.system import Completed
from tests.host_trees import plant

HOSTS = Path(__file__).parents[1] / "hosts"
# Of these only what the host's own files and KVM decide is held against what is expected.
JUDGED = ("kvm", "memory", "nesting")


class Recorded:
    """A Runner that answers as the computer did."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._told = told

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: bytes | None = None,  # noqa: ARG002 - the shape of a Runner
        codes: Sequence[int] = (0,),  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        cwd: Path | None = None,  # noqa: ARG002
        on_line: Callable[[str], None] | None = None,  # noqa: ARG002
    ) -> Completed:
        words = tuple(map(str, argv))
        if any(word.endswith("kvm_probe.py") for word in words):
            return Completed(words, 0, json.dumps({"instructions": 200_000, "value": 0x600D, **self._told["kvm"]}), "")
        if words[0] in ("lsblk", "wipefs"):
            return Completed(words, 0, "{}", "")
        return Completed(words, 0, "[]" if words[0] == "ip" else f"{Path(words[0]).name} 9.9.9\n", "")


class Libvirt:
    """libvirt as it answered there."""

    def __init__(self, features: Sequence[str]) -> None:
        self._features = frozenset(features)

    def facts(self) -> HypervisorFacts:
        return HypervisorFacts("qemu:///system", "11.0.0", "10.0.0", tuple(Arch), tuple(Arch))

    def cpu_features(self, _arch: Arch) -> frozenset[str]:
        return self._features

    def subnets(self) -> tuple[Subnet, ...]:
        return ()


def judged(name: str, root: Path) -> tuple[Check, ...]:
    told = YAML(typ="safe", pure=True).load(HOSTS / name / "host.yaml")
    assert told["source"].strip(), "where it comes from"
    plant(root, told["files"])
    plant(root, {"etc/passwd": "qemu:x:107:107::/:/sbin/nologin\n", "etc/group": "kvm:x:36:qemu\n"})
    if "kvm" in told:
        plant(root, {"dev/kvm": ""})
        (root / "dev/kvm").chmod(0o666)
    run = Recorded(told)
    facts = read_facts(root, run=run)

    def connect() -> Hypervisor:
        return Libvirt(told.get("features", ()))  # type: ignore[return-value] # as much of one as checks ask

    return run_checks(
        facts, kit_path=Path("/"), run=run, hypervisor=connect, root=root, find=lambda tool: Path("/usr/bin") / tool
    )


@pytest.mark.parametrize("name", sorted(folder.name for folder in HOSTS.iterdir()))
def test_a_computer_is_judged_as_expected(name: str, tmp_path: Path) -> None:
    checks = [check for check in judged(name, tmp_path) if check.group in JUDGED]
    text = json.dumps([_told(check, tmp_path) for check in checks], indent=1, ensure_ascii=False) + "\n"
    expected = HOSTS / name / "expected.json"
    if os.environ.get("POCKETCLOUD_GOLDEN") == "write":
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")
    for check in checks:
        assert check.why.endswith(".")
        assert check.evidence
        assert bool(check.remedy) <= (check.state in (State.WARN, State.FAIL, State.UNKNOWN))
    assert failed(checks) == any(check.state is State.FAIL for check in checks)


def _told(check: Check, root: Path) -> dict[str, object]:
    evidence = check.evidence.replace(f"{root}", "")
    told: dict[str, object] = {"id": check.id, "state": check.state, "evidence": evidence, "remedy": check.remedy}
    return {**told, "fixable": True} if check.fix else told
