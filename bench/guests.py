"""`lab up` and `lab reset` against what virsh and qemu-img do by hand with the same guests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Row, command, interleaved, seconds
from pocketcloud.guest import Login, wait_ssh
from pocketcloud.keys import kit_key, read_public

LAB = """\
lab: bench
machines:
  one: {base: debian-12, memory: 512MiB, networks: [net]}
  two: {base: debian-12, memory: 512MiB, networks: [net]}
networks:
  net: {kind: nat}
"""
MACHINES = ("one", "two")
_FIRST_BOOT_DONE = "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.5; done"
_WITHIN = 600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A kit of its own with a base, and how to call pocketcloud on it."""

    kit: Path
    name: str
    pocketcloud: tuple[str, ...]
    lab: Path

    def run(self, *words: str) -> None:
        """Run pocketcloud."""
        command(*self.pocketcloud, *words)

    def record(self) -> dict[str, object]:
        """The lab's record."""
        content: dict[str, object] = json.loads((self.kit / "labs" / "bench" / "lab.json").read_text())
        return content

    def wait(self, machine: str, *, first: bool) -> None:
        """The same proof of readiness that `lab up` demands, for the guests started by hand."""
        machines = self.record()["machines"]
        assert isinstance(machines, dict)
        address = next(iter(machines[machine]["addresses"].values()))
        host_key = " ".join(read_public(self.kit / "labs" / "bench" / "keys" / machine).split()[:2])
        login = Login(address, host_key, kit_key(self.kit).private)
        with wait_ssh(login, deadline=time.monotonic() + _WITHIN, stop=threading.Event()) as guest:
            if first:
                guest.run(_FIRST_BOOT_DONE, timeout=_WITHIN)

    def wait_all(self, *, first: bool, machines: Sequence[str] = MACHINES) -> None:
        """Wait for all machines at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: self.wait(machine, first=first), machines))


def up_rows(bench: Bench, rounds: int) -> list[Row]:
    """`lab up` until ready, against the same guests with the same seeds started by parallel `virsh start`."""
    whole: list[float] = []

    def ours() -> float:
        if (bench.kit / "labs" / "bench").exists():
            bench.run("lab", "destroy", "-y", "bench")
        ready, total = _timed_up(bench)
        whole.append(total)
        return ready

    def by_hand() -> float:
        domains = _define_by_hand(bench)
        try:
            return seconds(lambda: _start_and_wait(bench, domains))
        finally:
            for domain in domains:
                subprocess.run(["virsh", "-q", "destroy", domain], capture_output=True, check=False)
                command("virsh", "-q", "undefine", "--nvram", domain)

    ours()
    whole.clear()
    us, peer = interleaved(rounds, ours, by_hand, names=("lab up", "by hand"))
    return [
        Row("lab up from an existing base, until ready", us, peer, 1.2, "parallel virsh start of the same guests and seeds"),
        Row("lab up, the whole command with `clean` taken", tuple(whole), peer, None, "the same"),
    ]


def _timed_up(bench: Bench) -> tuple[float, float]:
    """Seconds until the last machine was ready, and until the command ended, both from its start."""
    started = time.perf_counter()
    ready = 0.0
    argv = [*bench.pocketcloud, "lab", "up", "--progress", "json", str(bench.lab)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if '"StepDone"' in line and '"id": "ready.' in line:
                ready = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError("lab up failed:\n" + "".join(said[-10:]))
    return ready, time.perf_counter() - started


def _define_by_hand(bench: Bench) -> list[str]:
    """Fresh overlays of the same base, the same seeds and MACs, in domains of other names; the lab's own are stopped."""
    record = bench.record()
    machines = record["machines"]
    assert isinstance(machines, dict)
    for machine in MACHINES:
        subprocess.run(["virsh", "-q", "destroy", f"{bench.name}.bench.{machine}"], capture_output=True, check=False)
    domains = []
    for machine in MACHINES:
        disk = bench.kit / "volumes" / f".hand-{machine}.qcow2"
        disk.unlink(missing_ok=True)
        base = f"{machines[machine]['base_volume']}.qcow2"
        command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, str(disk))
        xml = subprocess.run(
            ["virsh", "dumpxml", "--inactive", f"{bench.name}.bench.{machine}"], capture_output=True, text=True, check=True
        ).stdout
        domain = f"by-hand-{bench.name}-{machine}"
        xml = re.sub(r"<name>.*?</name>", f"<name>{domain}</name>", xml, count=1)
        xml = re.sub(r"<uuid>.*?</uuid>", "", xml, count=1)
        xml = re.sub(r"<metadata>.*?</metadata>", "", xml, count=1, flags=re.DOTALL)
        xml = re.sub(r"<source file='[^']*lab\.bench[^']*'(?: index='\d+')?/>", f"<source file='{disk}'/>", xml, count=1)
        xml = re.sub(r"(<nvram[^>]*>)[^<]*</nvram>", rf"\g<1>{bench.kit}/nvram/.hand-{machine}.fd</nvram>", xml, count=1)
        (bench.kit / "nvram" / f".hand-{machine}.fd").unlink(missing_ok=True)
        definition = bench.kit / f".hand-{machine}.xml"
        definition.write_text(xml)
        command("virsh", "-q", "define", str(definition))
        domains.append(domain)
    return domains


def _start_and_wait(bench: Bench, domains: Sequence[str]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda domain: command("virsh", "-q", "start", domain), domains))
    bench.wait_all(first=True)


def reset_rows(bench: Bench, rounds: int) -> list[Row]:
    """`lab reset` of both machines against a hand-written script that does the same, one after the other."""
    bench.run("lab", "up", "bench")

    def ours() -> float:
        return seconds(lambda: bench.run("lab", "reset", "-y", "bench"))

    def by_hand() -> float:
        return seconds(lambda: _reset_by_hand(bench))

    us, peer = interleaved(rounds, ours, by_hand, names=("lab reset", "by hand"))
    return [
        Row("lab reset of both machines", us, peer, 0.7, "virsh destroy, qemu-img create, virsh start, wait; one after the other")
    ]


def _reset_by_hand(bench: Bench) -> None:
    record = bench.record()
    machines, snapshots = record["machines"], record["snapshots"]
    assert isinstance(machines, dict)
    assert isinstance(snapshots, dict)
    for machine in MACHINES:
        domain = f"{bench.name}.bench.{machine}"
        live = bench.kit / "volumes" / f"{machines[machine]['disks']['root']}.qcow2"
        clean = f"{snapshots['clean']['machines'][machine]['disks']['root']}.qcow2"
        command("virsh", "-q", "destroy", domain)
        os.remove(live)  # noqa: PTH107 - as the script would
        command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", clean, str(live))
        command("virsh", "-q", "start", domain)
        bench.wait(machine, first=False)
