"""A cloud image made by ourselves, signed, fetched, verified and really customized in a guest: what the definition says is in it,
and nothing of the guest is. And a step that fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketcloud.bases import builder, definitions
from pocketcloud.bases.install.machine import KIT_ID
from pocketcloud.cache.store import Store, folder_of
from pocketcloud.cache.supply import KitSupply
from pocketcloud.cache.syncing import Means, sync
from pocketcloud.documents import parse_yaml
from pocketcloud.errors import NotFound, PartlyDone
from pocketcloud.hypervisor import open_hypervisor
from pocketcloud.model.base import Arch, ImageDefinition
from pocketcloud.model.cache import Kind, Wish
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.storage import open_storage
from tests.built_base import built_base, kit_in
from tests.signers import signers
from tests.web import serving

pytestmark = pytest.mark.slow

ROOT_OFFSET = 65 * MIB
DEFINITION = """
base: own-cloud
title: Our own cloud image
family: debian
version: "12"
builder: cloud-image
architectures: [x86_64]
size: 11GiB
images:
  x86_64:
    url: {url}
    sums: {sums}
    signature: {signature}
    keyring: {keyring}
patches: {patches}
post: {post}
"""


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A folder that QEMU's user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="pocketcloud-cloud-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def definition(room: Path) -> Iterator[str]:
    """A definition of an image that is served on loopback, with a signed list of sums; `post` is left open."""
    image, keys = room / "cloud.qcow2", room / "keys.asc"
    with built_base("debian-12", Arch.X86_64) as (_, volume):
        raw = room / "cloud.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, raw], check=True)
        # The host is of the same distribution (as the base's keyring is); so its `patch` runs there.
        add = f"cd /usr/bin\nwrite {shutil.which('patch')} patch\nsif patch mode 0100755\n"
        subprocess.run(["debugfs", "-w", "-f", "-", f"{raw}?offset={ROOT_OFFSET}"], input=add.encode(), check=True)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
        raw.unlink()
    with signers() as gnupg, serving() as web:
        gnupg.key("vendor")
        gnupg.ring(keys, "vendor", ascii_armor=True)
        content = image.read_bytes()
        image.unlink()
        listed = f"{hashlib.sha512(content).hexdigest()} *cloud.qcow2\n".encode()
        urls = {
            "url": web.put("/images/cloud.qcow2", content, etag='"one"'),
            "sums": web.put("/images/SHA512SUMS", listed),
            "signature": web.put("/images/SHA512SUMS.sign", gnupg.detached("vendor", listed, ascii_armor=True)),
        }
        yield DEFINITION.format(**urls, keyring=keys, post="{post}", patches="{patches}")


@pytest.fixture(scope="module")
def kit(room: Path) -> Kit:
    return kit_in(room / "kit")


def build(kit: Kit, text: str) -> tuple[builder.Built, list[tuple[str, float]]]:
    said: list[tuple[str, float]] = []
    made = parse_yaml(text, ImageDefinition, "own-cloud.yaml")
    built = builder.build(kit, open_storage(kit), made, Arch.X86_64, on_progress=lambda text, share: said.append((text, share)))
    return built, said


def guests() -> list[str]:
    """Throw-away guests of this process."""
    return [domain.name for domain in open_hypervisor().domains(KIT_ID) if f".{os.getpid()}-" in domain.name]


PATCH = r"""--- a/etc/issue
+++ b/etc/issue
@@ -1,2 +1,2 @@
-Debian GNU/Linux 12 \n \l
+Patched \n \l

"""


def ask(raw: Path, command: str) -> str:
    """What debugfs has to say about the root file system."""
    argv = ["debugfs", "-R", command, f"{raw}?offset={ROOT_OFFSET}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_what_the_definition_adds_is_in_it_and_nothing_of_the_guest(kit: Kit, definition: str, room: Path) -> None:
    steps = ["hostname > /etc/made-by", "cat > /etc/two-lines <<'END'\n'$HOME' \"quoted\"\nEND", "test -d /proc/1"]
    built, said = build(kit, definition.format(post=json.dumps(steps), patches=json.dumps([PATCH])))
    assert built.fresh
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert {"in a guest: patch 001", "in a guest: post 003", "in a guest: sealing"} <= {text for text, _ in said}
    assert "signed by" in built.base.made_with
    assert 200 * MIB < built.base.sizes.unsealed < 2 * GIB, "the guest tells what it took before it was sealed"
    (volume,) = open_storage(kit).volumes()
    assert (volume.sealed, volume.size) == (True, 11 * GIB)
    raw = room / "content.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, raw], check=True)
    try:
        checked = subprocess.run(["e2fsck", "-fn", f"{raw}?offset={ROOT_OFFSET}"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        assert ask(raw, "cat /etc/made-by").strip()
        assert ask(raw, "cat /etc/issue") == "Patched \\n \\l\n\n"
        assert "issue.orig" not in ask(raw, "ls /etc")
        assert ask(raw, "cat /etc/two-lines") == "'$HOME' \"quoted\"\n"
        assert "Size: 0" in ask(raw, "stat /etc/machine-id")
        for folder in ("/var/lib/cloud", "/etc/hostname", "/root/.ssh", "/var/lib/systemd/random-seed"):
            assert ask(raw, f"stat {folder}") == ""
        assert "ssh_host" not in ask(raw, "ls /etc/ssh")
        assert "pocketcloud-build" not in ask(raw, "cat /etc/hosts")
    finally:
        raw.unlink()
    # Grown to the whole disk in the guest, and trimmed again: the store holds little more than the image had.
    assert volume.used is not None
    assert volume.used < 700 * MIB
    assert guests() == []
    assert [path.name for path in (kit.path / "media").iterdir() if path.name.startswith(".")] == []
    assert not build(kit, definition.format(post=json.dumps(steps), patches=json.dumps([PATCH])))[0].fresh


def test_a_step_that_fails_is_told_with_what_it_said(kit: Kit, definition: str) -> None:
    before = open_storage(kit).volumes()
    steps = ["echo fine", "echo about to fail >&2; ls /nowhere/at/all"]
    with pytest.raises(PartlyDone) as caught:
        build(kit, definition.format(post=json.dumps(steps), patches="[]"))
    assert "its step 'post 002' failed" in caught.value.message
    assert "echo about" not in caught.value.message, "what a step says may be a secret"
    assert "/nowhere/at/all" in caught.value.message
    assert open_storage(kit).volumes() == before
    (logs,) = (kit.path / "media/logs").iterdir()
    assert "about to fail" in (logs / "console.log").read_text()
    assert guests() == []


def test_packages_come_from_the_cache_alone(kit: Kit, definition: str, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a definition adds is kept before, and installed in a guest on a network with nobody else on it."""
    shipped = definitions.find("debian-12-cloud")
    assert isinstance(shipped, ImageDefinition)
    text = definition.format(post='["hello"]', patches="[]").replace("own-cloud", "own-added")
    text += f"packages: [hello]\nsuite: {shipped.suite}\ntree: {shipped.tree}\nkeyring: {shipped.keyring}\n"
    text += f"repos: {json.dumps(dict(shipped.repos))}\n"
    folder = room / "bases"
    folder.mkdir()
    (folder / "own-added.yaml").write_text(text)
    monkeypatch.setenv("POCKETCLOUD_BASES", str(folder))
    made = definitions.find("own-added")
    supply, store = KitSupply(kit), Store(folder_of(kit))

    def built() -> builder.Built:
        return builder.build(kit, open_storage(kit), made, Arch.X86_64, supply=supply, on_progress=lambda _text, _share: None)

    with pytest.raises(NotFound, match="was never synced"):
        built()
    wish = Wish(Kind.BASE, made.base, Arch.X86_64)
    store.wish(wish)
    now = "2026-01-01T00:00:00+00:00"
    collection = sync(Means(store, kit.path / "media", None, lambda: now), wish, lambda _text, _share: None)
    assert any("/hello_" in key for key in collection.files)
    base = built().base
    volume = next(volume for volume in open_storage(kit).volumes() if volume.name == base.volume)
    raw = room / "added.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", volume.path, raw], check=True)
    try:
        assert "Type: regular" in ask(raw, "stat /usr/bin/hello")
        assert ask(raw, "stat /etc/apt/sources.list.d/pocketcloud.sources") == ""
    finally:
        raw.unlink()
    assert guests() == []
