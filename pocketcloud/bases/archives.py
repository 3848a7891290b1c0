"""The package sources that a definition names: archives of Debian's kind, for one architecture, and RPM repositories.

Facts: sources.list(5), DEB822 format; dnf.conf(5), "Repo options"; Ubuntu's mirrors carry x86, and ports.ubuntu.com the others
(Ubuntu's wiki, page "Mirrors").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pocketcloud.model.base import DEBIANS, Arch, ImageDefinition, InstallDefinition, spelled
from pocketcloud.model.names import Name

Sourced = InstallDefinition | ImageDefinition
"""Definitions that name package sources by `tree` and `repos`."""

_KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
_COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe", "restricted", "multiverse")}


def components(family: str) -> tuple[str, ...]:
    """The components of a distribution's archive that machines have."""
    return _COMPONENTS.get(family, ("main",))


def keyring(definition: Sourced) -> str:
    """The file with the keys that may sign the archive, as the distribution itself has it."""
    return _KEYRINGS.get(definition.family, definition.keyring)


def has_ports(definition: Sourced, arch: Arch) -> bool:
    """Whether the architecture's packages are on a mirror of their own, which has their security updates too."""
    return arch is not Arch.X86_64 and bool(definition.repos.get(Name("ports"), ""))


def archives(definition: Sourced, arch: Arch) -> tuple[str, str]:
    """The URLs of the archive and of its security updates (empty: none), without final slashes."""
    ports = definition.repos.get(Name("ports"), "") if has_ports(definition, arch) else ""
    public = spelled(ports or definition.tree, definition.family, arch).rstrip("/")
    security = spelled(definition.repos.get(Name("security"), ""), definition.family, arch).rstrip("/")
    return public, public if ports else security


def repositories(definition: Sourced, arch: Arch) -> tuple[str, ...]:
    """The URLs of further RPM repositories, in the definition's order."""
    return tuple(spelled(url, definition.family, arch) for url in definition.repos.values())


def apt_lines(definition: Sourced, archive: str, security: str) -> Iterator[str]:
    """The lines of a file for `/etc/apt/sources.list.d/NAME.sources`."""
    suite, parts, signed = definition.suite, " ".join(components(definition.family)), keyring(definition)
    yield from (
        "Types: deb",
        f"URIs: {archive}",
        f"Suites: {suite} {suite}-updates",
        f"Components: {parts}",
        f"Signed-By: {signed}",
    )
    if security:
        yield from ("", "Types: deb", f"URIs: {security}", f"Suites: {suite}-security", f"Components: {parts}")
        yield f"Signed-By: {signed}"


def guest_files(definition: ImageDefinition, arch: Arch, spell: Callable[[str], str]) -> dict[str, bytes]:
    """What a guest of that image is to take packages from in place of its own sources, by the name of a file for its package
    manager: `pocketcloud.sources` or `pocketcloud.repo`. Nothing where the definition names none. `spell` is put to every URL."""
    if definition.family in DEBIANS:
        archive, security = archives(definition, arch)
        lines = list(apt_lines(definition, spell(archive), spell(security) if security else "")) if archive else []
        return {"pocketcloud.sources": _text(lines)} if lines else {}
    lines = []
    for name, url in zip(definition.repos, repositories(definition, arch), strict=True):
        # The guest fills in the keys of its own distribution.
        lines += [f"[pocketcloud-{name}]", f"name={name}", f"baseurl={spell(url)}", "enabled=1", "gpgcheck=1", "gpgkey=", ""]
    return {"pocketcloud.repo": _text(lines)} if lines else {}


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
