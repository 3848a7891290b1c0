"""The demo's lab, unchanged, on a kit on LVM: two Debian guests under emulation inside User-Mode Linux, so it takes its time.

Then a guest that writes until the kit is full: it is paused, goes on when there is space again, and no file of its is damaged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import records
from pocketcloud.kit.attached import Places, find_kit
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage import open_storage
from pocketcloud.storage.devmapper import nodes
from pocketcloud.system import run
from tests.built_base import CACHE, kit_in
from tests.contract.stores import TOP
from tests.rig.inside.test_lab import cli, libvirt  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow
DISK = Path("/dev/ubda")
PAGE = "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://web/\", timeout=60).read().decode())'"


MODULES = (
    *("bridge", "tun", "xt_MASQUERADE", "xt_conntrack", "xt_tcpudp", "xt_CHECKSUM", "ipt_REJECT", "ip6t_REJECT"),
    *("iptable_filter", "iptable_nat", "iptable_mangle", "ip6table_filter", "ip6table_nat", "ip6table_mangle"),
)


@pytest.fixture(autouse=True)
def firewall() -> None:
    """What libvirt's networks need; this kernel's nf_tables knows no IPv4, so iptables has to be the older one."""
    run(["modprobe", "-a", *MODULES])
    for name in ("iptables", "ip6tables"):
        Path("/usr/sbin", name).unlink()
        Path("/usr/sbin", name).symlink_to("xtables-legacy-multi")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for large files: a disk of the rig's, as what is written elsewhere takes memory."""
    run(["mkfs.ext4", "-q", DISK])
    place = tmp_path / "disk"
    place.mkdir()
    run(["mount", DISK, place])
    yield place
    for command in ("free -m", "dmesg | tail -n 30", "tail -n 20 /var/log/libvirt/qemu/*.log"):
        print(command, run(["sh", "-c", command], codes=range(256)).out, sep="\n")
    cli(place, "kit", "detach", "usb", "-y", "--force")
    assert nodes() == ()
    run(["umount", place])


def states() -> dict[str, str]:
    """What libvirt says of the lab's machines, with its reason."""
    return {name: run(["virsh", "domstate", "--reason", f"usb.demo.{name}"]).out.strip() for name in ("web", "client")}


def test_the_demo_lab(folder: Path) -> None:
    began = time.monotonic()

    def told(what: str) -> None:
        print(f"{time.monotonic() - began:.0f} s: {what}", flush=True)

    def lab(verb: str, *words: object) -> str:
        return cli(folder, "lab", verb, *words)

    cli(folder, "kit", "init", "--file", folder / "usb.img", "--size", "6GiB", "--name", "usb", "-y")
    kit = find_kit(Places(folder / "default", Path("/run/pocketcloud")), "usb")
    storage = open_storage(kit)
    (base,) = records.built(kit_in(CACHE))
    (volume,) = (found for found in open_storage(kit_in(CACHE)).volumes() if found.name == base.volume)

    def filled(target: Path) -> None:
        run(["qemu-img", "convert", "-n", "--target-is-zero", "-W", "-O", "raw", volume.path, target])

    storage.create(base.volume, volume.size, filled)
    records.write(kit, base)
    storage.create("filler", 8 * GIB)
    storage.activate("filler")
    told("the base is there")

    # All of the demo's lab but its patience, as a Debian starts within minutes here, and its fence: there are no nftables.
    file = folder / "demo.yaml"
    file.write_text(
        (TOP / "labs" / "demo.yaml").read_text().replace("within: 5m", "within: 40m").replace("{kind: nat}", "{lan: true}")
    )
    lab("up", file)
    told("it is up")
    assert lab("exec", "demo", "client", "--", PAGE) == "it works\n"
    lab("exec", "demo", "web", "--", "rm -r /srv/www && sync")
    lab("reset", "demo", "-y")
    told("it is reset")
    assert lab("exec", "demo", "client", "--", PAGE) == "it works\n"

    room = storage.usage().free - 96 * MIB
    with storage.place("filler")[0].open("r+b") as target:
        for _ in range(room // MIB):
            target.write(b"x" * MIB)
        os.fsync(target.fileno())
    told("little room is left")
    writing = (
        "nohup sh -c 'dd if=/dev/urandom of=/root/much bs=1M count=160; sync; sha256sum /root/much >/root/sum' >/dev/null 2>&1 &"
    )
    lab("exec", "demo", "web", "--", writing)
    until = time.monotonic() + 1200
    while "paused" not in states()["web"]:
        assert time.monotonic() < until, states()
        time.sleep(2)
    told(f"the kit is full: {states()}")
    assert "I/O error" in states()["web"]
    assert "no space" in lab("status", "demo")
    cli(folder, "lab", "up", "demo", code=6)  # there is no room yet
    assert "paused" in states()["web"]
    storage.remove("filler")
    lab("up", "demo")
    lab(
        "exec",
        "demo",
        "web",
        "--",
        "while ! [ -s /root/sum ]; do sleep 1; done; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /root/sum",
    )
    told("it has gone on")
    assert not lab("exec", "demo", "web", "--", "dmesg | grep -i 'i/o error' || true").strip()
    assert lab("exec", "demo", "client", "--", PAGE) == "it works\n"
    lab("destroy", "demo", "-y")
    assert [found.name for found in storage.volumes()] == [base.volume]
