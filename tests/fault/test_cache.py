"""The cache through the real command line, with real networks of libvirt: served while a lab is there, and bad days."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.cache.store import Store, folder_of
from pocketcloud.model.cache import CACHE_SCHEMA, PORT, Collection
from tests import web
from tests.labkit import LabKit, lab_kit, raw_libvirt, until

LAB = """\
lab: tiny
machines:
  a: {base: tiny, memory: 32MiB, ready: {console: hello, within: 90s}, networks: [n]}
networks:
  n: {kind: isolated}
"""


@pytest.fixture
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made
        for record in (made.run / "cache").glob("*.json"):
            os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)


def fill(kit: LabKit) -> None:
    """Put a file into the cache."""
    store = Store(folder_of(kit.kit))
    store.make()
    (store.folder / "work/new").write_bytes(b"hello")
    stored = store.adopt(store.folder / "work/new")
    store.publish("file.tests", Collection(CACHE_SCHEMA, "tests", "", files={"h.example/x": stored}))


def server(kit: LabKit) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(next((kit.run / "cache").glob("*.json")).read_text())
    return record


def answers(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}:{PORT}/h.example/x", timeout=10) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.sampled(3)
def test_a_lab_is_served_while_it_is_there(kit: LabKit) -> None:
    fill(kit)
    file = kit.lab(LAB)
    kit.cli("lab", "up", file, "--offline", "--dry-run").expect(0, "serve the kit's cache", "pocketcloud cache serve")
    kit.cli("lab", "up", file, "--offline").expect(0, "is up")
    first = server(kit)
    address = first["places"][0].partition("%")[0]
    assert answers(address) == b"hello"
    status = Path(f"/proc/{first['pid']}/status").read_text()
    assert [line.split()[1:] for line in status.splitlines() if line.startswith("Uid")] == [["65534"] * 4]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", PORT), timeout=5)
    # The same again changes nothing; one that was killed is served again.
    kit.cli("lab", "up", "tiny", "--offline").expect(0)
    assert server(kit) == first
    os.kill(first["pid"], signal.SIGKILL)
    kit.cli("lab", "up", "tiny", "--offline").expect(0)
    assert server(kit)["pid"] != first["pid"]
    assert answers(address) == b"hello"
    kit.cli("lab", "down", "tiny").expect(0)
    assert list((kit.run / "cache").iterdir()) == []


@pytest.mark.sampled(3)
def test_the_server_ends_with_its_bridge_and_with_a_network(kit: LabKit) -> None:
    fill(kit)
    file = kit.lab(LAB)
    kit.cli("lab", "up", file, "--offline").expect(0)
    pid, log = server(kit)["pid"], next((kit.run / "cache").glob("*.log"))
    raw_libvirt().networkLookupByName(f"{kit.kit.name}.tiny.n").destroy()
    until(lambda: "is gone" in log.read_text() and _ended(pid), "the server ends", within=20)
    kit.cli("lab", "up", file, "--offline").expect(0)
    pid = server(kit)["pid"]
    kit.cli("lab", "up", "tiny", "--online").expect(0)
    assert _ended(pid)
    assert list((kit.run / "cache").iterdir()) == []


def _ended(pid: int) -> bool:
    """Whether it is gone, or waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.sampled(3)
def test_a_port_in_use_stops_the_lab_before_its_machines(kit: LabKit) -> None:
    fill(kit)
    file = kit.lab(LAB)
    with socket.create_server(("", PORT)):
        kit.cli("lab", "up", file, "--offline").expect(3, "is not served", f"another program has port {PORT}")
    kit.cli("lab", "up", file, "--offline").expect(0, "is up")


def test_it_is_served_to_labs_alone(kit: LabKit) -> None:
    fill(kit)
    kit.cli("cache", "serve").expect(4, "has no network that is up")
    for address in ("0.0.0.0", "192.0.2.1"):  # noqa: S104 - that it is refused
        kit.cli("cache", "serve", "--bind", address).expect(5, "served to labs alone")
    kit.cli("cache", "serve", "--bind", "nowhere").expect(2, "--bind")
    process = kit.start("cache", "serve", "--bind", "127.0.0.1", "--port", "3199")
    assert process.stderr is not None
    assert "http://127.0.0.1:3199" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    kit.finish(process).expect(130)


def test_what_a_lab_lacks_is_told_all_at_once(kit: LabKit) -> None:
    file = kit.lab(LAB.replace("base: tiny", "base: absent"))
    kit.cli("cache", "add", "debian-12", "--package", "nano", "--lab", file).expect(0)
    kit.cli("cache", "add", "--lab", file, "--url", "http://h.example/big", "--sha256", "0" * 64).expect(0)
    said = kit.cli("lab", "up", file, "--offline").expect(
        4, "base absent is not in the kit", "http://h.example/big: never synced"
    )
    assert "--online" in said.err
    assert not (kit.path / "labs/tiny").exists()


def test_a_file_is_kept_and_a_killed_sync_goes_on(kit: LabKit) -> None:
    content = bytes(range(256)) * 16384
    with web.serving() as site:
        url = site.put("/big", content, etag='"1"', breaks=3_000_000, holds=True)
        kit.cli("cache", "add", "--url", url, "--sha256", hashlib.sha256(content).hexdigest()).expect(0)
        process = kit.start("cache", "sync")
        until(lambda: any(path.stat().st_size >= 1_000_000 for path in kit.path.glob("media/cache/work/*/.*.part")), "it begins")
        second = kit.start("cache", "sync")
        until(lambda: "waiting for `pocketcloud cache sync`" in (second.stderr.readline() if second.stderr else ""), "it waits")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        page = site.pages["/big"]
        page.holds, page.times = False, 0
        page.released.set()
        kit.finish(second).expect(0, "complete")
        kit.cli("cache", "list").expect(0, "4 MiB", "complete", "asked for")
        assert any("bytes=" in headers.get("range", "") for _, headers in site.asked), "the second went on with the first one's"
        wrong = site.put("/wrong", b"another file")
        kit.cli("cache", "add", "--url", wrong, "--sha256", "1" * 64).expect(0)
        kit.cli("cache", "sync", wrong).expect(5, "not the right file")
    # Offline, what is there stays, is known as whole, and goes when it is not wanted.
    kit.cli("cache", "list", "--verify").expect(0, "never synced", "complete")
    kit.cli("cache", "prune", "-y", url, wrong).expect(0, "are free again")
    assert list(kit.path.glob("media/cache/objects/*/*")) == []
    kit.cli("cache", "list").expect(0, "empty")


def test_a_container_image_is_kept_as_an_archive(kit: LabKit) -> None:
    if subprocess.run(["which", "skopeo"], capture_output=True, check=False).returncode:
        pytest.skip("skopeo is not installed")
    layout = kit.folder / "layout"
    make_image(layout)
    kit.cli("cache", "add", "--image", f"oci:{layout}:tests").expect(0)
    kit.cli("cache", "sync").expect(0, "complete")
    (collection,) = Store(folder_of(kit.kit)).collections().values()
    assert set(collection.files) == {"images/layout.tar", f"images/{os.uname().machine}/layout.tar"}
    stored = collection.files["images/layout.tar"]
    with tarfile.open(Store(folder_of(kit.kit)).path(stored.sha256)) as archive:
        assert "manifest.json" in archive.getnames()
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == ["localhost/layout:latest"]
    kit.cli("cache", "add", "--image", "--help;x").expect(2, "not a container image")
    kit.cli("cache", "add", "--image", "127.0.0.1:1/nobody/nothing").expect(0)
    kit.cli("cache", "sync", "127.0.0.1:1/nobody/nothing").expect(3, "was not fetched")


def make_image(folder: Path) -> None:
    """An OCI layout with an empty layer."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    empty = bytes(10240)  # a tar archive of nothing
    layer = blob(empty, "layer.v1.tar")
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(empty).hexdigest()}"]}
    about = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    config = blob(json.dumps(about).encode(), "config.v1+json")
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry |= {"annotations": {"org.opencontainers.image.ref.name": "tests"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
