"""What builds and labs ask of the cache: what it lacks for them, and to be served. Nothing is fetched here."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pocketcloud.bases import bootstrap, definitions
from pocketcloud.bases.answer_values import autoinstall_packages, preseed_packages
from pocketcloud.bases.archives import Sourced, archives, components, keyring, repositories
from pocketcloud.bases.install import debian, ubuntu
from pocketcloud.cache.addresses import key_of, masked
from pocketcloud.cache.debian import Archive, lacking
from pocketcloud.cache.serving import serving
from pocketcloud.cache.store import Store, folder_of, id_of
from pocketcloud.downloads import fetch, shown
from pocketcloud.errors import NotFound, PocketcloudError
from pocketcloud.model.base import (
    DEBIANS,
    Arch,
    BootstrapDefinition,
    Builder,
    Definition,
    Download,
    ImageDefinition,
    InstallDefinition,
    LayerDefinition,
    spelled,
)
from pocketcloud.model.cache import Collection, Kind, Wish
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name


class KitSupply:
    """The cache of a kit, for its builds: a bases.recipe.Supply."""

    def __init__(self, kit: Kit) -> None:
        self._store = Store(folder_of(kit))
        self._media = kit.path / "media"

    def lacking(self, definition: Definition, arch: Arch) -> tuple[str, ...]:
        """See Supply.lacking. What is there is read whole, as half a build is lost when it ends at the last package."""
        if isinstance(definition, LayerDefinition):
            return self._lacking_of_layer(definition, arch)
        if reason := not_kept(definition):
            return (reason,)
        wish = Wish(Kind.BASE, definition.base, arch)
        downloads = downloads_of(definition, arch)
        absent = tuple(f"{shown(d.url or d.file)}, or it is damaged" for d in downloads if not _is_here(d, self._media))
        if downloads and not definition.packages and isinstance(definition, ImageDefinition):
            return absent
        if downloads and archive_of(definition, arch) is None and not any(repositories_of(definition, arch)):
            return absent
        found = self._store.collection(id_of(wish))
        if found is None:
            return (f"all of {wish.title}: it was never synced",)
        archive = archive_of(definition, arch)
        lines = lacking(archive, found.files) if archive else ()
        tree, repos = repositories_of(definition, arch)
        urls = [url for url in (tree, *repos) if url]
        elsewhere = [url for url in urls if not any(key.startswith(f"{key_of(url).rstrip('/')}/") for key in found.files)]
        if isinstance(definition, ImageDefinition) and repos:
            lines += _absent_rpms(definition.packages, found.files)
        return (*absent, *lines, *(f"all of {masked(url)}" for url in elsewhere), *self._unusable(found))

    def serve(self, address: str = "127.0.0.1") -> AbstractContextManager[str]:
        """See Supply.serve."""
        return serving(self._store.folder, address)

    def kept(self, url: str) -> Path | None:
        """See Supply.kept."""
        try:
            key = key_of(url)
        except ValueError:
            return None
        for collection in self._store.collections().values():
            if (stored := collection.files.get(key)) and self._store.is_whole(stored):
                return self._store.path(stored.sha256)
        return None

    def _unusable(self, collection: Collection) -> tuple[str, ...]:
        missing = set(self._store.missing(collection))
        bad = self._store.damaged(collection)
        return tuple(f"{key} ({'missing' if key in missing else 'damaged'})" for key in bad)

    def _lacking_of_layer(self, definition: LayerDefinition, arch: Arch) -> tuple[str, ...]:
        """The packages of a layer come with its own collection, or with that of the base at its bottom."""
        bottom, names = bottom_of(definition)
        if not names:
            return ()
        if reason := not_kept(bottom, names):
            return (reason,)
        found = [self._store.collection(id_of(Wish(Kind.BASE, name, arch))) for name in (definition.base, bottom.base)]
        there = [collection for collection in found if collection is not None]
        if not there:
            return (f"all of base {definition.base} ({arch}): it was never synced",)
        files = [key for collection in there for key in collection.files]
        if archive := archive_of(bottom, arch, names):
            absent = [line for line in lacking(archive, files) if line.removeprefix("the package ") in names]
        elif any(repositories_of(bottom, arch, names)):
            absent = list(_absent_rpms(names, files))
        else:
            return (f"its packages ({', '.join(names)}), which the cache does not keep for {bottom.base} in this version",)
        damaged = [line for collection in there for line in self._unusable(collection)]
        return (*absent, *dict.fromkeys(damaged))


def _absent_rpms(names: Iterable[str], files: Several[str]) -> tuple[str, ...]:
    return tuple(f"the package {name}" for name in names if not any(_is_rpm(key, name) for key in files))


def _is_rpm(key: str, name: str) -> bool:
    """Whether a file is that package, of any version: NAME-VERSION-RELEASE.ARCH.rpm. A group (`@core`) is known to dnf only."""
    return name.startswith("@") or key.rpartition("/")[2].rsplit("-", 2)[0] == name


def _is_here(download: Download, media: Path) -> bool:
    try:
        fetch(download, media, offline=True)
    except PocketcloudError:
        return False
    return True


def bottom_of(definition: Definition) -> tuple[Definition, tuple[str, ...]]:
    """The base at the bottom of a layer, and the packages of all layers above it; of another base itself, and none. Raises
    NotFound where one is missing or layers stand on each other in a circle."""
    names: list[str] = []
    seen = {definition.base}
    while isinstance(definition, LayerDefinition):
        names += definition.packages
        definition = definitions.find(definition.from_)
        if definition.base in seen:
            raise NotFound(f"layers stand on each other in a circle: {', '.join(sorted(seen))}", hint="mend their `from:`")
        seen.add(definition.base)
    return definition, tuple(dict.fromkeys(names))


def archive_of(definition: Definition, arch: Arch, extra: tuple[str, ...] = ()) -> Archive | None:
    """What the definition takes of a Debian archive; None if it takes nothing of one."""
    title = f"base {definition.base} ({arch})"
    if isinstance(definition, BootstrapDefinition):
        packages = bootstrap.packages(definition, arch)
        return Archive(title, arch, definition.suite, definition.keyring, definition.mirror, definition.security, packages, extra)
    if isinstance(definition, InstallDefinition) and definition.builder is Builder.PRESEED and definition.tree:
        mirror = spelled(definition.tree, definition.family, arch).rstrip("/")
        security = spelled(definition.repos.get(Name("security"), ""), definition.family, arch).rstrip("/")
        packages = preseed_packages(definition, arch)
        return Archive(
            title, arch, definition.suite, definition.keyring, mirror, security, packages, extra, debian.installs(arch)
        )
    if isinstance(definition, ImageDefinition | InstallDefinition):
        return _added_to(definition, arch, extra)
    return None


def _added_to(definition: Sourced, arch: Arch, extra: tuple[str, ...]) -> Archive | None:
    """What is added to a system that is there: to a cloud image, or to what Ubuntu's installer has on its disc."""
    if isinstance(definition, InstallDefinition) and definition.builder is Builder.AUTOINSTALL:
        wanted = (*autoinstall_packages(definition, arch), *ubuntu.installs(arch))
    elif isinstance(definition, ImageDefinition) and definition.family in DEBIANS:
        wanted = definition.packages
    else:
        return None
    mirror, security = archives(definition, arch)
    if not mirror or not (wanted or extra):
        return None
    signed, parts = definition.keyring or keyring(definition), components(definition.family)
    title = f"base {definition.base} ({arch})"
    return Archive(title, arch, definition.suite, signed, mirror, security, wanted, extra, components=parts, there=())


def repositories_of(definition: Definition, arch: Arch, extra: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """The installer's tree (empty: none) and the RPM repositories of a definition, for that architecture: of a kickstart's, and
    of a cloud image's to which packages are added, of its own or `extra`."""
    if isinstance(definition, InstallDefinition) and definition.builder is Builder.KICKSTART:
        return spelled(definition.tree, definition.family, arch), repositories(definition, arch)
    if isinstance(definition, ImageDefinition) and definition.family not in DEBIANS and (definition.packages or extra):
        return "", repositories(definition, arch)
    return "", ()


def not_kept(definition: Definition, extra: tuple[str, ...] = ()) -> str:
    """Why the cache cannot keep all that a build of it fetches, with `extra` packages; empty if it can."""
    if isinstance(definition, ImageDefinition) and (names := (*definition.packages, *extra)):
        keys = ("tree", "suite") if definition.family in DEBIANS else ("repos",)
        if not all(getattr(definition, key) for key in keys):
            said = " and ".join(f"`{key}:`" for key in keys)
            return f"its packages ({', '.join(names)}): its definition does not say where they are kept from ({said})"
    if isinstance(definition, InstallDefinition) and definition.registration:
        return "what it fetches from where it is registered cannot be kept by a cache"
    return ""


def downloads_of(definition: Definition, arch: Arch) -> tuple[Download, ...]:
    """What the definition has fetched into the kit's `media` before it begins: its cloud image, or its installer's disc."""
    files = definition.images if isinstance(definition, ImageDefinition) else {}
    files = definition.media if isinstance(definition, InstallDefinition) else files
    return (files[arch],) if arch in files else ()


def state_of(kit: Kit, wish: Wish) -> str:
    """What is wrong with the wish's collection, for people, without reading its contents; empty if it is there."""
    store = Store(folder_of(kit))
    found = store.collection(id_of(wish))
    if found is None:
        return "never synced"
    missing = store.missing(found)
    if missing:
        return f"{len(missing)} of {len(found.files)} files are missing"
    if wish.kind is Kind.BASE:
        try:
            bottom, names = bottom_of(definitions.find(wish.name))
            extra = (*wish.packages, *names)
            archive = archive_of(bottom, wish.arch, extra)
            rpms = extra if any(repositories_of(bottom, wish.arch, extra)) else ()
        except PocketcloudError as error:
            return error.message.splitlines()[0]
        if absent := lacking(archive, found.files) if archive else _absent_rpms(rpms, found.files):
            return f"lacks {', '.join(absent[:5])}{' and more' if len(absent) > 5 else ''}".replace("the package ", "")
    return ""
