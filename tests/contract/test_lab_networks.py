"""The networks of labs by the real command line, on real libvirt: what it says of them, and what it leaves on the host."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.hypervisor.firewall import Fences
from pocketcloud.model.names import mac_address
from pocketcloud.system import run
from tests.labkit import LabKit, lab_kit, raw_libvirt

LAB = """lab: demo
machines:
  web:
    base: tiny
    memory: 16MiB
    ready: {console: hello}
    networks: [front]
networks:
  front: {KIND}
"""

pytestmark = pytest.mark.sampled(3)


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge of this host's, which has nothing to do with libvirt."""
    name = f"pctbr{secrets.token_hex(4)}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


def ports(bridge: str) -> list[str]:
    """What is plugged into a bridge."""
    return sorted(path.name for path in Path("/sys/class/net", bridge, "brif").iterdir())


def status(kit: LabKit) -> dict[str, object]:
    """What `lab status demo` says."""
    found: dict[str, object] = json.loads(kit.cli("lab", "status", "demo", "-o", "json").expect(0).out)
    return found


def the_host_knows_the_names(kit: LabKit, address: str, lab: Path) -> None:
    """From asking for it until the lab is down, which this ends with."""
    hosts = kit.folder / "hosts"
    theirs = "127.0.0.1 localhost\n192.0.2.9 web.demo.internal"
    hosts.write_text(theirs)
    line = f"{address}\tweb.demo.internal web.demo\n"
    assert kit.cli("lab", "hosts", "demo", "--write").expect(0, "known on this host").out == line
    written = f"{theirs}\n# BEGIN pocketcloud {kit.kit.name}.demo\n{line}# END pocketcloud {kit.kit.name}.demo\n"
    assert hosts.read_text() == written
    # As if it had had another subnet until now.
    hosts.write_text(written.replace(address, "192.0.2.44"))
    kit.cli("lab", "up", lab).expect(0, "the names of lab demo are renewed")
    assert hosts.read_text() == written
    kit.cli("lab", "down", "demo", "--within", "0").expect(0, "are taken out of")
    assert hosts.read_text() == theirs + "\n"
    assert kit.cli("lab", "hosts", "demo").expect(0).out == line
    kit.cli("lab", "hosts", "demo", "--write").expect(7, "lab demo is down", "pocketcloud lab up demo")
    assert hosts.read_text() == theirs + "\n"


def test_a_routed_lab_tells_the_route_that_others_need(kit: LabKit) -> None:
    path = kit.lab(LAB.replace("{KIND}", "{kind: routed}"))
    said = kit.cli("lab", "up", path).expect(0).err
    found = status(kit)
    assert "vnc://127.0.0.1:59" in kit.cli("lab", "status", "demo").expect(0).out
    subnet = found["networks"]["front"]  # type: ignore[index] # JSON
    note = re.compile(rf"network front is routed: .*\(ip route add {re.escape(str(subnet))} via [^ )]+\)")
    assert any(note.fullmatch(text) for text in found["notes"])  # type: ignore[attr-defined] # JSON
    assert note.search(said)
    shown = kit.cli("lab", "plan", path).expect(0).out
    assert "<forward mode='route'/>" in shown
    assert "admin-prohibited" in shown
    the_host_knows_the_names(kit, str(found["machines"][0]["address"]), path)  # type: ignore[index] # JSON
    found = status(kit)
    assert found["notes"] == []
    assert found["machines"][0]["screen"] == ""  # type: ignore[index] # JSON


def test_a_fence_closes_libvirts_networks_whatever_their_range(kit: LabKit) -> None:
    name = f"pctest-{secrets.token_hex(4)}"
    other = f"<network><name>{name}</name><ip address='203.0.113.193' prefix='28'/></network>"
    handle = raw_libvirt().networkDefineXML(other)
    try:
        shown = kit.cli("lab", "plan", kit.lab(LAB.replace("{KIND}", "{kind: nat}"))).expect(0).out
    finally:
        handle.undefine()
    assert re.search(r"ip daddr \{ .*203\.0\.113\.192/28.* \} reject", shown)


def test_a_fence_that_others_took_down_is_missed_and_put_up_again(kit: LabKit) -> None:
    path = kit.lab(LAB.replace("{KIND}", "{kind: isolated}"))
    kit.cli("lab", "up", path).expect(0)
    assert status(kit)["notes"] == []
    Fences().remove(kit.network("demo", "front").bridge)
    kit.cli("lab", "status", "demo").expect(0, "note: network front has lost its fence", "pocketcloud lab up demo puts it up")
    # Said in the answer of `up`, it would be said of what `up` has mended.
    assert "fence" not in kit.cli("lab", "up", path).expect(0).err
    assert status(kit)["notes"] == []
    kit.lab(LAB.replace("{KIND}", "{lan: true}"))
    kit.cli("lab", "up", path, "--reconfigure").expect(0)
    assert status(kit)["notes"] == []


def fence(kit: LabKit) -> str:
    """What nftables have around the lab's network; empty if it has no fence."""
    name = kit.network("demo", "front").bridge
    if name not in Fences().bridges():
        return ""
    return run(["nft", "list", "chain", "inet", "pocketcloud", name]).out


def test_whatever_brings_a_lab_back_settles_the_fences_of_its_networks(kit: LabKit, bridge: str) -> None:
    path = kit.lab(LAB.replace("{KIND}", "{kind: nat}"))
    kit.cli("lab", "up", path).expect(0)
    kit.cli("lab", "snapshot", "demo@fenced").expect(0)
    Fences().remove(kit.network("demo", "front").bridge)
    # A LAN of public addresses, which was joined since.
    subprocess.run(["ip", "address", "add", "203.0.113.129/26", "dev", bridge], check=True)
    kit.cli("lab", "reset", "demo", "-y").expect(0)
    assert "203.0.113.128/26" in fence(kit)
    kit.lab(LAB.replace("{KIND}", "{lan: true}"))
    kit.cli("lab", "up", path).expect(0)
    assert not fence(kit)
    kit.cli("lab", "restore", "demo@fenced", "-y").expect(0)
    assert fence(kit)
    kit.cli("lab", "undo", "demo", "-y").expect(0)
    assert not fence(kit)
    shown = kit.cli("lab", "restore", "demo@fenced", "--dry-run").expect(0).out
    assert "settle the fence of network front" in shown


def test_a_network_without_machines_moves_from_what_this_host_has_joined(kit: LabKit, bridge: str) -> None:
    path = kit.lab(LAB.replace("{KIND}", "{kind: nat}"))
    kit.cli("lab", "up", path).expect(0)
    kit.cli("lab", "down", "demo", "web", "--within", "0").expect(0)
    subnet = kit.network("demo", "front").range
    subprocess.run(["ip", "address", "add", f"{subnet[7]}/25", "dev", bridge], check=True)
    kit.cli("lab", "up", path).expect(0, f"network front moves from {subnet} to ")
    assert not kit.network("demo", "front").range.overlaps(subnet)
    assert status(kit)["notes"] == []


def test_a_machine_sits_on_a_bridge_of_the_host_and_the_bridge_stays(kit: LabKit, bridge: str) -> None:
    path = kit.lab(LAB.replace("{KIND}", f"{{kind: bridge, bridge: {bridge}}}"))
    kit.cli("lab", "up", path).expect(0)
    (port,) = ports(bridge)
    machine = raw_libvirt().lookupByName(f"{kit.kit.name}.demo.web")
    interface = ET.fromstring(machine.XMLDesc(0)).find("devices/interface")  # noqa: S314 - libvirt's own
    assert interface is not None
    mac, target = interface.find("mac"), interface.find("target")
    assert mac is not None
    assert target is not None
    assert (mac.get("address"), target.get("dev")) == (mac_address("demo", "web", 0, kit.kit.id), port)
    found = status(kit)
    assert found["networks"] == {"front": f"bridge {bridge}"}
    assert found["machines"][0]["address"] == ""  # type: ignore[index] # JSON
    kit.cli("lab", "ssh", "demo", "web").expect(7, "no network of this kit's own")
    # One that is another's, or nobody's, is refused before anything is made.
    absent = kit.lab(LAB.replace("{KIND}", "{kind: bridge, bridge: pctnone}").replace("lab: demo", "lab: other"))
    kit.cli("lab", "up", absent).expect(5, "to be the bridge pctnone", "none of that name", bridge, "ip link add pctnone")
    assert not kit.files("other").record.exists()
    kit.cli("lab", "destroy", "demo", "-y").expect(0)
    assert ports(bridge) == []
    assert f"{kit.kit.name}.demo.front" not in [network.name() for network in raw_libvirt().listAllNetworks()]
