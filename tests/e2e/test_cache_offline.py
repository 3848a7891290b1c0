"""Without a network: a base is built and a lab raised from what the kit's cache was filled with before, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pocketcloud.cache.store import Store, folder_of
from pocketcloud.model.base import Arch
from pocketcloud.model.cache import Kind, Wish
from pocketcloud.model.names import Name
from tests.labkit import LabKit, lab_kit

pytestmark = pytest.mark.slow

# A network of its own, with a loopback and nothing else.
UNPLUGGED = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "unplugged")
LAB = """\
lab: web
machines:
  web:
    base: debian-12
    memory: 512MiB
    networks: [front]
    provision:
      - run: apt-get -q --error-on=any update && DEBIAN_FRONTEND=noninteractive apt-get -qy install nginx-light
      - run: grep -q 'Proxy-Auto-Detect' /etc/apt/apt.conf.d/90pocketcloud-cache
    ready: {tcp: 80, within: 10m}
networks:
  front: {kind: isolated}
"""


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        made.cli("cache", "add", "debian-12", "--package", "nginx-light").expect(0, "is to keep base debian-12")
        made.cli("cache", "sync", timeout=600).expect(0, "complete")
        yield made


def test_one_package_is_missing_and_nothing_is_begun(kit: LabKit) -> None:
    store = Store(folder_of(kit.kit))
    found = store.collection(f"base.debian-12.{Arch.X86_64}")
    assert found is not None
    key, stored = next((key, stored) for key, stored in found.files.items() if "/curl_" in key)
    path = store.path(stored.sha256)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    said = kit.cli("base", "build", "debian-12", "--offline").expect(4, "cannot be built offline", "damaged", "cache sync")
    assert key in said.err
    path.unlink()
    kit.cli("base", "build", "debian-12", prefix=UNPLUGGED).expect(4, "no default route", "missing")
    assert list((kit.path / "media").glob(".work*")) == []
    kit.cli("cache", "list", "--verify").expect(8, "1 files damaged", "pocketcloud cache sync")
    kit.cli("cache", "sync", timeout=600).expect(0, "complete")
    assert path.read_bytes() == content


def test_a_base_is_built_with_the_network_unplugged(kit: LabKit) -> None:
    kit.cli("base", "build", "debian-12", prefix=UNPLUGGED, timeout=900).expect(0, "packages from the kit's cache", "is built")
    kit.cli("base", "build", "debian-12", prefix=UNPLUGGED).expect(0, "is up to date")


def test_machines_install_from_the_cache_beside_them(kit: LabKit) -> None:
    """Their network has no way out; after the lab nothing serves any more."""
    file = kit.lab(LAB)
    store = Store(folder_of(kit.kit))
    store.wish(Wish(Kind.BASE, "debian-12", Arch.X86_64, ("nginx-light", "nosuch-package"), labs=(Name("web"),)))
    kit.cli("lab", "up", file, "--offline").expect(4, "cannot be raised offline", "nosuch-package")
    store.wish(Wish(Kind.BASE, "debian-12", Arch.X86_64, ("nginx-light",)))
    kit.cli("lab", "up", file, "--offline", timeout=1200).expect(0, "is up")
    record = next((kit.run / "cache").glob("*.json"))
    kit.cli("lab", "destroy", "web", "-y", timeout=300).expect(0)
    assert not record.exists()
