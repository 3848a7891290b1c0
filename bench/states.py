"""Many copies of a lab from a base that is there: what `lab up --count` takes to make their disks and definitions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Row, command, interleaved, seconds
from tests.labkit import LabKit, lab_kit

COPIES = 8
# What a step does until a guest, or a network, has something to do with it; the rest is not counted.
_MADE = ("volumes", "volume", "seed", "commit", "nvram", "define")
_LAB = """\
lab: many
machines:
  a: {base: tiny, memory: 32MiB, ready: {console: hello, within: 5m}, networks: [net]}
networks:
  net: {kind: nat}
"""


def count_rows(rounds: int) -> list[Row]:
    """Disks, records and definitions of eight copies, from the plan's begin until the last is defined, against the goal, and
    against what qemu-img and virsh take for the same, one after the other. What the command needs to start and to look at all
    comes once, however many copies there are; it has a row of its own. The guests are boot sectors: how long they boot does not
    count."""
    with lab_kit() as kit:
        lab = kit.lab(_LAB)
        kit.cli("lab", "up", lab, "--as", "many-0").expect(0)  # libvirtd's first look at QEMU is nobody's
        whole, making = list[float](), list[float]()

        def ours() -> float:
            begun, made, total = _timed_up(kit, lab)
            whole.append(total)
            making.append(made - begun)
            _destroy(kit)
            return made

        us, peer = interleaved(rounds, ours, lambda: _by_hand(kit), names=(f"lab up --count {COPIES}", "by hand"))
        limit = (1.5,) * len(us)
        return [
            Row(f"{COPIES} copies: disks and definitions", tuple(making), limit, 1.0, "the goal of 1.5 s"),
            Row(f"{COPIES} copies: disks and definitions", tuple(making), peer, None, "qemu-img create, virsh define, in turn"),
            Row(f"{COPIES} copies: from the command's start to the last definition", us, limit, None, "the same 1.5 s"),
            Row(f"{COPIES} copies, the whole command with `clean` taken", tuple(whole), limit, None, "the same 1.5 s"),
        ]


def _timed_up(kit: LabKit, lab: Path) -> tuple[float, float, float]:
    """Seconds from the start until the plan began, until the last disk, record and definition was made, and until the end.
    Networks are started later, so no second of theirs is in the first two."""
    started = time.perf_counter()
    argv = [*kit.argv("lab", "up", lab, "--count", str(COPIES), "--progress", "json")]
    begun = made = 0.0
    seen = dict.fromkeys(("commit", "define"), 0)
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=kit.env
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line)
            kind = event.get("id", "").partition("@")[0].partition(".")[0]
            if event["event"] == "PlanStarted":
                begun = time.perf_counter() - started
            if event["event"] == "StepDone" and kind in _MADE:
                made = time.perf_counter() - started
                seen[kind] = seen.get(kind, 0) + 1
    if process.returncode or seen["commit"] != COPIES or seen["define"] != COPIES:
        raise RuntimeError(f"lab up --count {COPIES}: exit code {process.returncode}, made {seen}")
    return begun, made, time.perf_counter() - started


def _destroy(kit: LabKit) -> None:
    for number in range(1, COPIES + 1):
        kit.cli("lab", "destroy", f"many-{number}", "-y").expect(0)


def _by_hand(kit: LabKit) -> float:
    """The same disks and definitions as a script would make them."""
    source = subprocess.run(
        ["virsh", "dumpxml", "--inactive", f"{kit.kit.name}.many-0.a"], capture_output=True, text=True, check=True
    ).stdout
    (base,) = (volume.path for volume in kit.storage.volumes() if volume.name.startswith("base."))
    disks = [kit.folder / f"hand-{number}.qcow2" for number in range(COPIES)]
    definitions = []
    for number, disk in enumerate(disks):
        xml = re.sub(r"<name>.*?</name>", f"<name>by-hand-{kit.kit.name}-{number}</name>", source, count=1)
        xml = re.sub(r"<uuid>.*?</uuid>", "", xml, count=1)
        xml = re.sub(r"<metadata>.*?</metadata>", "", xml, count=1, flags=re.DOTALL)
        xml = re.sub(r"<mac address=[^>]*/>", "", xml)
        xml = re.sub(r"<source file='[^']*\.qcow2'(?: index='\d+')?/>", f"<source file='{disk}'/>", xml, count=1)
        definitions.append(kit.folder / f"hand-{number}.xml")
        definitions[-1].write_text(xml)

    def make() -> None:
        for disk, definition in zip(disks, definitions, strict=True):
            command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(disk))
            command("virsh", "-q", "define", str(definition))

    try:
        return seconds(make)
    finally:
        for number, disk in enumerate(disks):
            subprocess.run(["virsh", "-q", "undefine", f"by-hand-{kit.kit.name}-{number}"], capture_output=True, check=False)
            disk.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    """Only these rows: `python -m bench.states ROUNDS`."""
    for row in count_rows(int(arguments[0]) if arguments else 3):
        print(row.line(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
