"""The host room: reads what the host is, and judges nothing but KVM. Judgements are `check`'s, choices the profiles'."""

from __future__ import annotations

from pathlib import Path

from pocketcloud.host.cores import read_cores
from pocketcloud.host.hardware import (
    has_device_tree,
    read_arch,
    read_compatible,
    read_cpus,
    read_hypervisor,
    read_kernel,
    read_machine,
    read_memory,
    read_model,
)
from pocketcloud.host.kvm import read_kvm
from pocketcloud.host.network import read_subnets
from pocketcloud.host.release import read_distribution
from pocketcloud.model.facts import Facts
from pocketcloud.system import Runner, run

_ROOT = Path("/")


def read_facts(root: Path = _ROOT, *, run: Runner = run, fresh: bool = False) -> Facts:
    """What the host is, as the files under `root` and the commands through `run` say it.

    A few hundredths of a second, and once per boot up to a second for KVM's timed loop, whose verdict is kept on tmpfs if
    it can be written; `fresh` measures it again. Nothing is changed. What cannot be read is empty or 0, never an error.
    """
    memory, available = read_memory(root)
    return Facts(
        arch=read_arch(root),
        machine=read_machine(root),
        kernel=read_kernel(root),
        distribution=read_distribution(root),
        model=read_model(root),
        device_tree=has_device_tree(root),
        cpus=read_cpus(root),
        memory=memory,
        memory_available=available,
        kvm=read_kvm(root, run, fresh=fresh),
        virtualised=read_hypervisor(root),
        systemd=(root / "run/systemd/system").is_dir(),
        subnets=read_subnets(root, run),
        compatible=read_compatible(root),
        cores=read_cores(root),
    )
