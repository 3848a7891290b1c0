"""What is wrong with a definition whose keys and types are right: keys that do not fit together, and values that no installer
could be told.

Definitions can come from strangers, and are shown, kept and passed on; so passwords are refused in them, and what is refused is
never repeated in the message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from pocketcloud.model.base import (
    DEBIANS,
    Arch,
    BootstrapDefinition,
    Builder,
    CpuLevel,
    Definition,
    Download,
    ImageDefinition,
    InstallDefinition,
)
from pocketcloud.model.sizes import GIB, size_text
from pocketcloud.quoting import unfit

KeyPath = tuple[str | int, ...]
Found = Iterator[tuple[KeyPath, str]]

# Names of packages: Debian Policy 5.6.1, RPM's allow capitals, `_` and more; `@` begins a group of dnf.
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:~^-]{0,127}", re.ASCII)
_GROUP = re.compile(r"@\^?[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}", re.ASCII)
_KEYRING = re.compile(r"/[A-Za-z0-9._+/-]{1,255}", re.ASCII)
_TEMPLATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\.j2", re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}", re.ASCII)
_PLACEHOLDER = re.compile(r"\{[^{}/]*\}?|\}")
_SMALLEST = {Builder.KICKSTART: 8 * GIB, Builder.PRESEED: 4 * GIB, Builder.AUTOINSTALL: 8 * GIB}
_MEDIA = "/var/lib/pocketcloud/media/"
_LONGEST_TEXT = 64 * 1024
"""Of a patch or a step, in characters: a command line takes 128 KiB at most, and some installers get it as one."""


def faults(definition: Definition) -> Found:
    """Key paths and messages."""
    yield from _common(definition)
    match definition:
        case BootstrapDefinition():
            yield from _suite(definition.suite)
            yield from _keyring(definition.keyring)
            for key in ("mirror", "security"):
                if url := getattr(definition, key):
                    yield from _url((key,), url, placeholder=False)
        case InstallDefinition():
            yield from _install(definition)
        case ImageDefinition():
            yield from _by_arch("images", definition.images, definition.architectures)
            yield from _image(definition)
        case _:
            pass


def _common(definition: Definition) -> Found:
    if not definition.architectures:
        yield ("architectures",), "expected at least one"
    for index, arch in enumerate(definition.architectures):
        if arch in definition.architectures[:index]:
            yield ("architectures", index), f"duplicate: {arch} stands here twice"
    for key in ("title", "family"):
        if wrong := unfit(getattr(definition, key)):
            yield (key,), f"{wrong} cannot stand here"
    if definition.version and not _VERSION.fullmatch(definition.version):
        yield ("version",), "expected digits, letters, `.`, `_` and `-`"
    for index, name in enumerate(definition.packages):
        if not _PACKAGE.fullmatch(name) and not (definition.builder is Builder.KICKSTART and _GROUP.fullmatch(name)):
            yield ("packages", index), "expected the name of a package (with kickstart also `@GROUP`)"
        elif name in definition.packages[:index]:
            yield ("packages", index), f"duplicate: {name} stands here twice"
    for key in ("patches", "post"):
        yield from _texts(key, getattr(definition, key))
    if definition.requires.cpu not in (None, CpuLevel.V1) and Arch.X86_64 not in definition.architectures:
        yield ("requires", "cpu"), "levels are those of x86_64, which is not among the architectures"


def _texts(key: str, texts: tuple[str, ...]) -> Found:
    for index, text in enumerate(texts):
        if wrong := unfit(text, lines=True):
            yield (key, index), f"{wrong} cannot stand here"
        elif not text.strip():
            yield (key, index), "is empty"
        elif len(text) > _LONGEST_TEXT:
            yield (key, index), f"{len(text)} characters; expected at most {_LONGEST_TEXT}"
        elif key == "patches" and not re.search(r"^--- .+\n\+\+\+ .+\n@@ ", text, re.MULTILINE):
            yield (key, index), "expected a unified diff (`--- a/etc/x`, `+++ b/etc/x`, `@@ ...`)"


def _install(definition: InstallDefinition) -> Found:
    if not _TEMPLATE.fullmatch(definition.template):
        yield ("template",), "expected the name of a file in kickstarts/, NAME.j2"
    if definition.tree:
        yield from _url(("tree",), definition.tree)
    for name, url in definition.repos.items():
        yield from _url(("repos", name), url)
    if definition.media:
        yield from _by_arch("media", definition.media, definition.architectures)
    if definition.size < _SMALLEST[definition.builder]:
        yield ("size",), f"{size_text(definition.size)}; the installer needs {size_text(_SMALLEST[definition.builder])}"
    if definition.suite:
        yield from _suite(definition.suite)
    yield from _keyring(definition.keyring)
    match definition.builder:
        case Builder.KICKSTART:
            yield from _kickstart(definition)
        case Builder.PRESEED:
            yield from _needs(definition, "tree", "suite", "keyring")
            yield from _only_repos(definition, "security")
        case Builder.AUTOINSTALL:
            yield from _needs(definition, "tree", "suite", "media")
            yield from _only_repos(definition, "security", "ports")
    if definition.registration and definition.builder is not Builder.KICKSTART:
        yield ("registration",), "is for RHEL, which is installed by kickstart"


def _image(definition: ImageDefinition) -> Found:
    if definition.tree:
        yield from _url(("tree",), definition.tree)
    for name, url in definition.repos.items():
        yield from _url(("repos", name), url)
    if definition.suite:
        yield from _suite(definition.suite)
    yield from _keyring(definition.keyring)
    if definition.family in DEBIANS:
        if definition.tree or definition.suite:
            yield from _needs(definition, "tree", "suite")
        yield from _only_repos(definition, "security", "ports")
    else:
        for key in ("tree", "suite", "keyring"):
            if getattr(definition, key):
                yield (key,), "is for Debian and Ubuntu; others name their repositories in `repos:`"


def _kickstart(definition: InstallDefinition) -> Found:
    registration = definition.registration
    if not definition.tree and not definition.media:
        yield ("tree",), "missing: the installer starts from an install tree, or from `media:`"
    if definition.suite:
        yield ("suite",), "is for Debian and Ubuntu"
    if registration is None:
        return
    if definition.tree:
        yield ("registration",), "packages come from the registration or from `tree:`; leave one out"
    # A definition may be a stranger's, and what it names here is read as root and handed to the system that it installs.
    path = registration.activation_key_file
    if not path.startswith("/etc/pocketcloud/") or ".." in path.split("/") or unfit(path):
        yield ("registration", "activation_key_file"), "expected the path of a file in /etc/pocketcloud"
    if registration.organization and not re.fullmatch("[0-9A-Za-z_.-]{1,64}", registration.organization):
        yield ("registration", "organization"), "expected the organization's number"


def _needs(definition: InstallDefinition | ImageDefinition, *keys: str) -> Found:
    for key in keys:
        if not getattr(definition, key):
            yield (key,), f"missing, and {definition.builder} needs it"


def _only_repos(definition: InstallDefinition | ImageDefinition, *known: str) -> Found:
    for name in definition.repos:
        if name not in known:
            yield ("repos", name), f"{definition.builder} knows only: {', '.join(known)}"


def _by_arch(key: str, downloads: Mapping[Arch, Download], architectures: tuple[Arch, ...]) -> Found:
    for arch in architectures:
        if arch not in downloads:
            yield (key,), f"nothing for {arch}, which is among the architectures"
    for arch, download in downloads.items():
        if arch not in architectures:
            yield (key, arch), "is not among the architectures"
        for name in ("url", "sums", "signature"):
            if url := getattr(download, name):
                yield from _url((key, arch, name), url, placeholder=False)
        for name in ("file", "keyring"):
            if path := getattr(download, name):
                yield from _path((key, arch, name), path)
        yield from _pinned((key, arch, "file"), download)


def _pinned(at: KeyPath, download: Download) -> Found:
    """A definition may be a stranger's: it does not get at another machine's disk by its path alone, for its steps to read."""
    file = download.file
    vouched = download.sha256 or download.signature or (download.sums and download.keyring)
    if file and not vouched and (not file.startswith(_MEDIA) or ".." in file.split("/")):
        yield at, f"needs its `sha256:` beside it (sha256sum tells it), or to lie in {_MEDIA}"


def _path(at: KeyPath, path: str) -> Found:
    if not path.startswith("/") or unfit(path):
        yield at, "expected the path of a file, from the root"


def _keyring(path: str) -> Found:
    """It stands among the options of a line for apt, where a space or a bracket would begin another."""
    if path and not _KEYRING.fullmatch(path):
        yield ("keyring",), "expected the path of a file, from the root, of letters, digits and `. _ + -`"


def _suite(suite: str) -> Found:
    if not _SUITE.fullmatch(suite):
        yield ("suite",), "expected the name of a release, as `trixie`"


def _url(at: KeyPath, url: str, *, placeholder: bool = True) -> Found:
    try:
        parts = urlsplit(url)
        has_password, host, _ = parts.username is not None or parts.password is not None, parts.hostname, parts.port
    except ValueError:
        yield at, "expected a URL"
        return
    if has_password:
        # Not repeated here: this goes to terminals and logs.
        yield at, "a user or a password does not belong in a definition, which is shown and passed on"
    elif parts.scheme not in ("http", "https") or not host or not url.isascii() or re.search(r"[\s\"'<>\\^`|]", url):
        yield at, "expected a URL, http:// or https://"
    elif unknown := [found for found in _PLACEHOLDER.findall(url) if found != "{arch}" or not placeholder]:
        known = "only `{arch}` is filled in" if placeholder else "nothing is filled in here"
        yield at, f"`{unknown[0]}`: {known}"
