"""Fulfilling wishes: what each kind is fetched by, and the collection that comes of it, published whole.

What was fetched before an interruption is kept in the wish's work folder, and gone on from. Everything there already is read and
checked; what is damaged is fetched again. The caller holds the cache's lock.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.bases import definitions
from pocketcloud.bases.install import ubuntu
from pocketcloud.bases.mirror import apt_options, choose_from
from pocketcloud.bases.progress import OnProgress
from pocketcloud.cache import debian
from pocketcloud.cache.addresses import key_of
from pocketcloud.cache.store import Store, id_of
from pocketcloud.cache.supply import archive_of, bottom_of, downloads_of, not_kept, repositories_of
from pocketcloud.cache.trees import TreeFetch
from pocketcloud.downloads import fetch
from pocketcloud.errors import HostLacks, PartlyDone, PocketcloudError, Refused, UsageError
from pocketcloud.files import remove_tree
from pocketcloud.iso import extract
from pocketcloud.model.base import Arch, Builder, Download
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish
from pocketcloud.system import CommandFailed, Runner, run

IMAGES = "images"
"""The host's name under which container images are kept: `http://CACHE/images/ARCH/REFERENCE.tar`, and without `ARCH/`."""

_DOWNLOADED = 0.5
"""How far a base's sync is when its image or disc is here, where packages follow."""

# As docker's reference grammar has it, in short: host, path, tag, digest; no scheme, nothing that begins with a dash.
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9._:/-]*(@sha256:[0-9a-f]{64})?", re.IGNORECASE)
_TRANSPORTED = re.compile(r"(docker|oci|oci-archive|docker-archive|dir):.+")
_SKOPEO_ARCH = {Arch.X86_64: "amd64", Arch.AARCH64: "arm64"}


@dataclass(frozen=True, slots=True)
class Means:
    """What a sync works with: `media` is the kit's folder of downloads, `mirror` where the user wants Debian's packages from,
    `now` gives ISO 8601 text in UTC."""

    store: Store
    media: Path
    mirror: str | None
    now: Callable[[], str]
    run: Runner = run


def sync(means: Means, wish: Wish, tell: OnProgress) -> Collection:
    """Fetch what the wish lacks, and publish its collection. Raises NotFound, Refused, HostLacks, NoSpace or PartlyDone; what
    was published before stays then, and so does what was fetched."""
    store, name = means.store, id_of(wish)
    store.make()
    known = store.known(store.collection(name))
    work = store.work(name)
    work.mkdir(mode=0o755, exist_ok=True)
    tell("looking at what is there", 0.0)
    packages: tuple[str, ...] = ()
    if wish.kind is Kind.BASE:
        files, packages = _base(means, wish, work, known, tell)
    elif wish.kind is Kind.FILE:
        files = _file(store, wish, work, known, tell)
    else:
        stored = _image(means, wish, work, tell)
        files = {image_key(wish.name, wish.arch): stored}
        if wish.arch == platform.machine():
            files[image_key(wish.name)] = stored
    collection = Collection(CACHE_SCHEMA, wish.title, means.now(), packages, files)
    store.publish(name, collection, means.run)
    remove_tree(work)
    tell("done", 1.0)
    return collection


def _base(
    means: Means, wish: Wish, work: Path, known: Mapping[str, Stored], tell: OnProgress
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    definition, layered = bottom_of(definitions.find(wish.name))
    if wish.arch not in definition.architectures:
        raise UsageError(
            f"base {wish.name} is not made for {wish.arch}", hint=f"--arch takes: {', '.join(definition.architectures)}"
        )
    extra = tuple(dict.fromkeys((*layered, *wish.packages)))
    if reason := not_kept(definition, extra):
        raise UsageError(f"{wish.title}: {reason}", hint="build it while there is a network: the kit keeps bases that are built")
    archive, (tree, repos) = archive_of(definition, wish.arch, extra), repositories_of(definition, wish.arch, extra)
    downloads, alone = downloads_of(definition, wish.arch), not (archive or tree or repos)
    first = tell if alone else _share(tell, 0.0, _DOWNLOADED)
    here = [fetch(download, means.media, tell=first, run=means.run).path for download in downloads]
    tell = _share(tell, _DOWNLOADED, 1.0) if downloads else tell
    found: dict[str, Stored] = {}
    if archive is not None:
        if definition.builder is Builder.AUTOINSTALL and here:
            archive = replace(archive, there=_on_disc(here[0], work))
        # Ubuntu's mirrors do not have every architecture.
        family = definition.family if definition.family == "debian" or wish.arch == platform.machine() else ""
        origin = choose_from(family, archive.mirror, archive.security, means.mirror)
        found |= debian.fetch(archive, origin, apt_options(means.run), means.store, work, known, means.run, tell)
    if tree or repos:
        found |= TreeFetch(wish.title, wish.arch, means.store, work, known, tell).fetch(tree, repos)
    return found, debian.wanted(archive) if archive else ()


def _share(tell: OnProgress, start: float, end: float) -> OnProgress:
    return lambda text, done: tell(text, start + (end - start) * done)


def _on_disc(disc: Path, work: Path) -> tuple[str, ...]:
    """The packages that Ubuntu's installer has on its disc. Raises Refused for a disc that does not tell."""
    manifest = work / "manifest"
    try:
        extract(disc, ubuntu.MANIFEST_PATH, manifest)
        names = ubuntu.on_disc(manifest.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, KeyError):
        names = ()
    if not names:
        raise Refused(
            f"{disc.name}: the packages on the installer's disc cannot be told: it has no {ubuntu.MANIFEST_PATH}",
            hint="is it a disc of Ubuntu's live server?",
        )
    return names


def _file(store: Store, wish: Wish, work: Path, known: Mapping[str, Stored], tell: OnProgress) -> dict[str, Stored]:
    key = key_of(wish.name)
    if key in known and known[key].sha256 == wish.sha256:
        return {key: known[key]}
    return {key: store.adopt(fetch(Download(url=wish.name, sha256=wish.sha256), work, tell=tell).path)}


# -- container images


def checked_reference(text: str) -> str:
    """A container image's reference from the command line; raises UsageError. `docker://` may be left out."""
    plain = text.removeprefix("docker://")
    if _TRANSPORTED.fullmatch(plain) and "//" not in plain:
        return plain
    if not _REFERENCE.fullmatch(plain) or ".." in plain or "//" in plain:
        raise UsageError(
            f"{text[:100]!r} is not a container image",
            hint="as docker.io/library/nginx:1.27, quay.io/podman/hello:latest, or oci-archive:FILE",
        )
    return plain


def image_key(reference: str, arch: Arch | None = None) -> str:
    """The key under which an image's archive is kept: of one that comes from a file, the file's name. One of the architecture of
    the host that fetched it is found by its name alone (`arch` None), too."""
    if _TRANSPORTED.fullmatch(reference) and not _registry(reference):
        reference = Path(reference.partition(":")[2].partition(":")[0]).stem
    return f"{IMAGES}/{f'{arch}/' if arch else ''}{reference}.tar"


def _registry(reference: str) -> bool:
    """Whether it is a registry's: `oci:latest` is an image called oci."""
    transport, _, rest = reference.partition(":")
    return transport not in ("oci", "oci-archive", "docker-archive", "dir") or not ("/" in rest or Path(rest).exists())


def _image(means: Means, wish: Wish, work: Path, tell: OnProgress) -> Stored:
    """Copied by skopeo, which checks every layer against the manifest's digests; credentials are those of its own files."""
    target = work / "image.tar"
    target.unlink(missing_ok=True)
    source = f"docker://{wish.name}" if _registry(wish.name) else wish.name
    tell(f"copying {wish.name}", 0.1)
    argv: list[str | Path] = [
        "skopeo", "--override-os", "linux", "--override-arch", _SKOPEO_ARCH[wish.arch],
        "copy", "--quiet", "--", source, f"docker-archive:{target}:{_tag(wish.name)}",
    ]  # fmt: skip
    try:
        means.run(argv)
    except CommandFailed as error:
        last = " ".join((error.completed.err or error.completed.out).split())[-500:]
        raise HostLacks(
            f"{wish.title} was not fetched: {last}",
            hint="does it exist, and is the registry reachable? skopeo login, if it asks who you are",
        ) from None
    return means.store.adopt(target)


def _tag(reference: str) -> str:
    """The name that the archive carries, which `podman load` and `docker load` give it: a digest cannot be part of it."""
    if not _registry(reference):
        return f"localhost/{Path(image_key(reference)).stem.lower()}:latest"
    name = reference.partition("@")[0]
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


# -- all of them


def sync_all(
    means: Means, wishes: tuple[Wish, ...], tell: Callable[[Wish, str, float], None]
) -> Iterator[tuple[Wish, Collection]]:
    """Sync one after the other; one that fails holds up none of the others, and is raised at the end: alone as it is, several
    as PartlyDone."""
    failed: dict[str, PocketcloudError] = {}
    for wish in wishes:
        try:
            yield wish, sync(means, wish, lambda text, part, wish=wish: tell(wish, text, part))  # type: ignore[misc] # bound at once
        except PocketcloudError as error:
            failed[wish.title] = error
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        hints = dict.fromkeys(error.hint for error in failed.values() if error.hint)
        raise PartlyDone("\n".join(f"{title}: {error.message}" for title, error in failed.items()), hint="; ".join(hints))


def prune(store: Store, kept: tuple[Wish, ...]) -> int:
    """Keep those wishes, and remove what none of them needs; the bytes that were freed."""
    store.wish(*kept)
    names = {id_of(wish) for wish in kept}
    for name in [path.stem for path in store.sets.glob("*.json") if not path.name.startswith(".")]:
        if name not in names:
            store.withdraw(name)
    return sweep(store)


def sweep(store: Store) -> int:
    """Remove contents that no collection names, and half-fetched ones of no wish; the bytes that were freed."""
    freed = 0
    for path in tuple(store.leftovers()):
        with suppress(FileNotFoundError):
            inside = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
            freed += sum(found.st_blocks * 512 for one in inside if (found := one.lstat()).st_nlink < 2 or one.is_dir())
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return freed


def joined(wishes: tuple[Wish, ...], new: Wish) -> tuple[Wish, ...]:
    """The wishes with a further one, which is added to the one of the same key."""
    found = []
    for wish in wishes:
        if wish.key == new.key:
            packages = tuple(dict.fromkeys((*wish.packages, *new.packages)))
            labs = tuple(dict.fromkeys((*wish.labs, *new.labs)))
            sha256 = new.sha256 or wish.sha256
            new = replace(new, packages=packages, labs=labs, asked=wish.asked or new.asked, sha256=sha256)
        else:
            found.append(wish)
    return (*found, new)
