"""An installer's kernel and initramfs, and the disc it may be on: found where the definition says, verified, kept in the kit.

A tree names them with their sums in `.treeinfo`; Debian's mirrors in a list of sums that the suite's signed Release names; of a
disc they are a part. What is known of a tree is kept, too (`media/trees/`): a computer without a network has its installer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.bases.install import debian, treeinfo, ubuntu
from pocketcloud.bases.install.treeinfo import Image
from pocketcloud.bases.mirror import Mirror, choose_from
from pocketcloud.bases.recipe import Order
from pocketcloud.downloads import Patience, Tell, fetch, shown
from pocketcloud.downloads.signatures import check_clearsigned
from pocketcloud.downloads.sums import NoSum, sum_of
from pocketcloud.downloads.transfer import check_url, fetch_small
from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError
from pocketcloud.files import write_whole
from pocketcloud.iso import extract, volume_label
from pocketcloud.model.base import Builder, Download, InstallDefinition, spelled
from pocketcloud.model.names import Name


@dataclass(frozen=True, slots=True)
class Medium:
    """What is started: files of this host. `disc` is the installer's disc (None: it needs none), `label` its volume's; `name` is
    for people."""

    kernel: Path
    initrd: Path
    name: str
    disc: Path | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a medium is to be had: two files to fetch, or two of this host, or those in a disc that is to be fetched."""

    name: str
    kernel: Download | None = None
    initrd: Download | None = None
    disc: Download | None = None


def tree_of(order: Order[InstallDefinition]) -> str:
    """The URL of the tree that packages come from, without a final slash; empty: there is none."""
    definition = order.definition
    return spelled(order.mirror or definition.tree, definition.family, order.arch).rstrip("/")


def archive_of(order: Order[InstallDefinition]) -> Mirror:
    """Where a Debian or Ubuntu gets its packages from. The host's own mirror has those of the host's architecture; the kit's
    cache knows everything by the definition's addresses, wherever it came from."""
    definition, native = order.definition, order.arch == order.here.machine
    archive = spelled(definition.tree, definition.family, order.arch)
    security = spelled(definition.repos.get(Name("security"), ""), definition.family, order.arch)
    if order.offline:
        return Mirror(archive.rstrip("/"), security.rstrip("/"), "the kit's cache")
    return choose_from(definition.family if native else "", archive, security, order.mirror, order.here.root)


def find(order: Order[InstallDefinition], patience: Patience | None = None) -> Found:
    """Look where the installer is to be had; fetches small files only. Raises what a download raises, and Refused for a place
    that has no installer."""
    definition, arch = order.definition, order.arch
    media = definition.media.get(arch)
    if media is not None:
        return Found(f"the disc {(media.file or shown(media.url)).rsplit('/', 1)[-1]}", disc=media)
    if definition.builder is Builder.AUTOINSTALL or not definition.tree:
        raise UsageError(
            f"base {definition.base}: its definition names no disc of the installer for {arch}",
            hint=f"add `media: {{{arch}: {{url: ..., sha256: ...}}}}` to it",
        )
    if definition.builder is Builder.PRESEED:
        return _debian(order, patience or Patience())
    return _tree(order, patience or Patience())


def get(order: Order[InstallDefinition], found: Found, tell: Tell, patience: Patience | None = None) -> Medium:
    """Have the files here, verified: fetched once. Raises what a download raises."""
    into, downloads = order.kit.path / "media", (found.kernel, found.initrd)
    if found.disc is not None:
        disc = fetch(found.disc, into, tell=tell, offline=order.offline, patience=patience, run=order.run).path
        return _on_disc(order, found, disc)
    here = []
    for number, download in enumerate(downloads):
        assert download is not None  # noqa: S101 - `find` gives both where there is no disc; this tells the type checker

        def told(text: str, done: float, number: int = number) -> None:
            tell(text, (number + done) / len(downloads))

        here.append(fetch(download, into, tell=told, offline=order.offline, patience=patience, run=order.run).path)
    return Medium(here[0], here[1], found.name)


# -- trees with a .treeinfo -------------------------------------------------------------------------------------------


def _tree(order: Order[InstallDefinition], patience: Patience) -> Found:
    tree = tree_of(order)
    what = f"the install tree at {shown(tree)}"
    names = tuple(f"{tree}/{name}" for name in treeinfo.NAMES)
    text = _remembered(order, tree, lambda: _fetched_treeinfo(tree, what, patience), names)
    try:
        info = treeinfo.read_treeinfo(text.decode(errors="replace"), order.arch)
    except treeinfo.NoTree as wrong:
        _forget(order, tree)
        raise Refused(f"{what} cannot be installed from: {wrong}", hint="is it the folder that has .treeinfo in it?") from None
    name = " ".join(part for part in (info.family, info.version) if part)
    return Found(
        f"{name or 'the installer'} from {shown(tree)}", *(_image(order, tree, image) for image in (info.kernel, info.initrd))
    )


def _fetched_treeinfo(tree: str, what: str, patience: Patience) -> bytes:
    check_url(tree, what)
    for name in treeinfo.NAMES:
        try:
            return fetch_small(f"{tree}/{name}", what, patience)
        except NotFound:
            continue
    raise NotFound(f"{what} is none: it has no .treeinfo", hint="name the folder that has .treeinfo and images/ in it")


def _image(order: Order[InstallDefinition], tree: str, image: Image) -> Download:
    return _kept_or_fetched(order, f"{tree}/{image.path}", image.sha256)


def _kept_or_fetched(order: Order[InstallDefinition], url: str, sha256: str) -> Download:
    if order.supply and (kept := order.supply.kept(url)):
        return Download(file=str(kept), sha256=sha256)
    return Download(url=url, sha256=sha256)


# -- Debian's mirrors -------------------------------------------------------------------------------------------------


def _debian(order: Order[InstallDefinition], patience: Patience) -> Found:
    """From the mirror, whose kernel fits its modules; where it has none, or is not reached, from the package of this host."""
    try:
        return _debian_mirror(order, patience)
    except (NotFound, HostLacks):
        packaged = debian.packaged(order.here.root, order.definition.version, order.arch)
        if packaged is None:
            raise
        kernel, initrd = (Download(file=str(path)) for path in packaged)
        return Found(f"this host's debian-installer-{order.definition.version}-netboot-{order.arch.debian}", kernel, initrd)


def _debian_mirror(order: Order[InstallDefinition], patience: Patience) -> Found:
    definition, mirror = order.definition, archive_of(order).archive
    suite = f"{mirror}/dists/{definition.suite}"
    images = debian.IMAGES.format(arch=order.arch.debian)
    keyring = order.here.root / definition.keyring.lstrip("/")
    listed = f"{suite}/{images}/{debian.SUMS}"
    what = f"Debian's {definition.suite} at {shown(mirror)}"

    def fetched() -> bytes:
        check_url(mirror, what)
        signed = fetch_small(f"{suite}/InRelease", f"the release file of {what}", patience, 16 << 20)
        _, release = check_clearsigned(signed, keyring, f"the release file of {what}", order.run)
        wanted = debian.sums_in(release).get(f"{images}/{debian.SUMS}")
        if wanted is None:
            raise NotFound(f"{what} has no installer for {order.arch.debian}")
        sums = fetch_small(listed, f"the installer's sums of {what}", patience)
        if hashlib.sha256(sums).hexdigest() != wanted:
            raise Refused(
                f"the installer's sums of {what} are not those that its signed release file names",
                hint="the mirror may be in the middle of an update: try again later, or name another --mirror",
            )
        return sums

    sums = _remembered(order, f"{suite}/{images}", fetched, (listed,)).decode(errors="replace")
    folder = f"{suite}/{images}/{debian.NETBOOT.format(arch=order.arch.debian)}"
    downloads = []
    for name in debian.STARTED:
        try:
            found = sum_of(sums, f"{folder}/{name}", listed)
        except NoSum as missing:
            raise NotFound(f"{what} has no network installer for {order.arch.debian}: {missing}") from None
        downloads.append(_kept_or_fetched(order, f"{folder}/{name}", found.hexadecimal))
    return Found(f"Debian {definition.version} from {shown(mirror)}", *downloads)


# -- discs ------------------------------------------------------------------------------------------------------------


def _on_disc(order: Order[InstallDefinition], found: Found, disc: Path) -> Medium:
    """The kernel and the initramfs out of a disc, in the work folder."""
    kernel, initrd = order.work / "disc-kernel", order.work / "disc-initrd"
    try:
        paths = (ubuntu.KERNEL_PATH, ubuntu.INITRD_PATH)
        if order.definition.builder is not Builder.AUTOINSTALL:
            extract(disc, "/.treeinfo", order.work / "treeinfo")
            info = treeinfo.read_treeinfo((order.work / "treeinfo").read_text(errors="replace"), order.arch)
            paths = (f"/{info.kernel.path}", f"/{info.initrd.path}")
        for inside, path in zip(paths, (kernel, initrd), strict=True):
            extract(disc, inside, path)
        return Medium(kernel, initrd, found.name, disc, volume_label(disc))
    except (treeinfo.NoTree, ValueError) as wrong:
        raise Refused(f"{found.name} cannot be installed from: {wrong}", hint=f"look at {disc}") from None
    except KeyError as missing:
        raise Refused(f"{found.name} is no disc of this installer: it has no {missing.args[0]}", hint=f"look at {disc}") from None


# -- what is known of a place -----------------------------------------------------------------------------------------


def _remembered(order: Order[InstallDefinition], place: str, fetched: Callable[[], bytes], urls: Sequence[str] = ()) -> bytes:
    """What a place says of itself, verified: asked anew where it can be, else as it was when it was asked last. Offline first
    what the cache has of one of `urls`: the rest of the cache fits that."""
    path = _memory(order, place)
    if order.supply is not None:
        for url in urls:
            if kept := order.supply.kept(url):
                return kept.read_bytes()
        if not path.exists():
            raise HostLacks(
                f"nothing is known of the installer at {shown(place)}, and nothing may be fetched: offline",
                hint=f"where there is a network: pocketcloud cache add {order.definition.base}; or leave out --offline",
            )
        return path.read_bytes()
    try:
        said = fetched()
    except HostLacks as unreached:
        if not path.exists():
            raise
        order.tell(f"taken as it was when it was last seen: {unreached.message}", 0.0)
        return path.read_bytes()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(path, said)
    return said


def _forget(order: Order[InstallDefinition], place: str) -> None:
    _memory(order, place).unlink(missing_ok=True)


def _memory(order: Order[InstallDefinition], place: str) -> Path:
    return order.kit.path / "media/trees" / hashlib.sha256(f"{place}\0{order.arch}".encode()).hexdigest()[:32]
