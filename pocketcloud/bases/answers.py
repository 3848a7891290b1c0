"""Answers for distributions' installers: kickstart, preseed and autoinstall, rendered from a definition and what is particular
to one build. Pure but for the templates, which are read; what is decided for each installer is in answer_values.py.

Every answer tells the host how it went on the virtio-serial port `Site.port`: the line `OK BUILD-ID` when the system is
installed, finished and sealed, or `FAIL STEP`. All installers need a machine that starts by UEFI (on x86 they set up BIOS, too);
Anaconda needs `inst.nosave=all`, or it copies its logs and this file into the new system after everything else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pocketcloud.bases import definitions
from pocketcloud.bases.answer_values import Installation, values
from pocketcloud.errors import BadDocument, Fault, HostLacks, NotFound
from pocketcloud.model.base import Arch, Builder, InstallDefinition, spelled
from pocketcloud.quoting import FILTERS, Quoted, unfit
from pocketcloud.render import render_answer, template_files
from pocketcloud.resources import overlaid

PORT = "org.pocketcloud.install.0"
"""The virtio-serial port on which an installation says how it went."""
MASK = "********"

_NAMES = {Builder.KICKSTART: "ks.cfg", Builder.PRESEED: "preseed.cfg", Builder.AUTOINSTALL: "user-data"}
_CONSOLES = {Arch.X86_64: "ttyS0", Arch.AARCH64: "ttyAMA0"}


@dataclass(frozen=True, slots=True)
class Site:
    """What differs from build to build.

    `build_id` comes back in the marker; `disk` is the kernel's name of the one to install on; `tree` is where a kickstart
    installs from (empty: from its disc, or by registration) and `repos` its further sources; `apt_mirror` stands in for the
    definition's mirror while Debian or Ubuntu is installed; `proxy` likewise for all, and `gateway` is the address of who has it,
    where there is nobody else. None of these addresses stays in the new system.
    `activation_key` is a secret, as `activation_key` reads it. URLs may hold passwords.
    """

    build_id: str
    disk: str = "vda"
    tree: str = field(default="", repr=False)
    repos: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str = field(default="", repr=False)
    gateway: str = ""
    apt_mirror: str = field(default="", repr=False)
    console: str = "ttyS0"
    port: str = PORT
    activation_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer file: its `name` where the installer looks for it, its `text`, and the `secrets` in it, which nobody may see."""

    name: str
    text: str = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def shown(self) -> str:
        """The text with its secrets masked."""
        return _masked(self.text, self.secrets)


def site(definition: InstallDefinition, arch: Arch, build_id: str) -> Site:
    """A site that has everything from the definition's own, public addresses. No activation key."""
    repos = {str(name): spelled(url, definition.family, arch) for name, url in definition.repos.items()}
    return Site(build_id, tree=spelled(definition.tree, definition.family, arch), repos=repos, console=_CONSOLES[arch])


def render(definition: InstallDefinition, arch: Arch, site: Site, templates: Path | None = None) -> Answer:
    """The answer for one build. `templates`: a folder whose files stand in place of ours of the same names (left out: the one
    that POCKETCLOUD_TEMPLATES names, if any, then those that an imported definition came with).

    Raises BadDocument with file and line of a template that is wrong, or with what the definition cannot say to an installer;
    NotFound if there is no such template; HostLacks without an activation key where one is needed.
    """
    folders = _folders(definition) if templates is None else (templates, *overlaid("kickstarts", {}))
    if definition.registration and not site.activation_key:
        raise HostLacks(f"base {definition.base}: there is no activation key to register with")
    _refuse_unfit(definition)
    said = values(definition, arch, Installation(**{name: getattr(site, name) for name in Installation.__dataclass_fields__}))
    secrets = _secrets(site)
    try:
        text = render_answer(folders, definition.template, {**said, "script": _script(folders, definition, said)})
    except BadDocument as bad:
        # What a template makes of a secret can be in jinja2's message.
        faults = [replace(fault, message=_masked(fault.message, secrets)) for fault in bad.faults]
        raise BadDocument(bad.source, faults, hint=bad.hint) from None
    return Answer(_NAMES[definition.builder], text, secrets)


def _folders(definition: InstallDefinition) -> tuple[Path, ...]:
    *own, ours = overlaid("kickstarts")
    came = definitions.came_with(definition.base)
    return (*own, *([came / "kickstarts"] if came else []), ours)


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _script(folders: Sequence[Path], definition: InstallDefinition, said: Mapping[str, object]) -> Script:
    """What is run in the new system: NAME.sh.j2 beside NAME.*.j2, if there is one."""
    name = _script_name(definition)
    if not any((folder / name).is_file() for folder in folders):
        return Script("")
    text = Script(render_answer(folders, name, said))
    # Everything a definition says stands in quotes behind the script's own words, so this is about templates.
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("%"):
            raise BadDocument(name, [Fault(0, "", f"line {number} of what it comes to begins with `%`, a section for kickstart")])
    return text


def _script_name(definition: InstallDefinition) -> str:
    return definition.template.split(".")[0] + ".sh.j2"


def templates(definition: InstallDefinition, folders: Sequence[Path]) -> dict[str, bytes]:
    """The files that an answer is rendered from, by name, as they are in the first of `folders` that has each."""
    return {**template_files(folders, definition.template), **template_files(folders, _script_name(definition))}


class Script(str):
    """A script's text; a loop over it gives its lines, each fit to stand in a line of its own."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return (Quoted(line) for line in self.splitlines())


def _refuse_unfit(definition: InstallDefinition) -> None:
    """Definitions from files have been looked at; layers of them, and those made by hand, may not have been."""
    texts = [("post", text) for text in definition.post] + [("patches", text) for text in definition.patches]
    for key, text in texts:
        if wrong := unfit(text, lines=True):
            raise BadDocument(definition.base, [Fault(0, key, f"{wrong} cannot stand here")])


def inputs(definition: InstallDefinition, arch: Arch, templates: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """What of an answer makes a base another one: the whole text, without what differs from build to build."""
    neutral = replace(site(definition, arch, "-"), activation_key="-:-" if definition.registration else "")
    answer = render(definition, arch, neutral, templates)
    yield answer.name, answer.text.encode()


def preview(definition: InstallDefinition, arch: Arch, templates: Path | None = None) -> str:
    """The answer as it would be used, for people: no secret is even read for it."""
    registration = definition.registration
    key = f"{registration.organization or 'ORGANIZATION'}:{MASK}" if registration else ""
    return render(definition, arch, replace(site(definition, arch, "BUILD"), activation_key=key), templates).shown


def activation_key(definition: InstallDefinition, root: Path = Path("/")) -> str:
    """The line in the definition's file of the activation key: `KEY` or `ORGANIZATION:KEY`. Empty without a registration.

    Raises NotFound without the file, HostLacks if others may read it, BadDocument if it holds no such line.
    """
    registration = definition.registration
    if registration is None:
        return ""
    path = root / registration.activation_key_file.lstrip("/")
    form = "KEY" if registration.organization else "ORGANIZATION:KEY"
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).strip()
    except FileNotFoundError:
        raise NotFound(
            f"base {definition.base}: no file {path} with the activation key of your subscription",
            hint=f"write one line into it, {form}, and: chmod 600 {path}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise HostLacks(f"base {definition.base}: {path} cannot be read ({type(error).__name__})") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise HostLacks(f"base {definition.base}: others can read the activation key in {path}", hint=f"chmod 600 {path}")
    organization, _, key = text.rpartition(":")
    if not key or unfit(text) or " " in text or not (organization or registration.organization):
        raise BadDocument(str(path), [Fault(1, "", f"expected one line, {form}")])
    return text


def _secrets(site: Site) -> tuple[str, ...]:
    """The secrets of a site, and how each is written in an answer; the longest first, so that none hides in another."""
    plain = {site.activation_key.rpartition(":")[2]}
    for url in (site.proxy, site.apt_mirror, site.tree, *site.repos.values()):
        parts = urlsplit(url)
        if parts.password:
            plain |= {parts.password, unquote(parts.password)}
    plain.discard("")
    written = {str(form) for secret in plain for form in _forms(secret)}
    return tuple(sorted(plain | written, key=lambda secret: (-len(secret), secret)))


def _forms(secret: str) -> Iterator[str]:
    for name in ("ks", "sh", "yaml"):
        try:
            yield FILTERS[name](secret).strip("'\"")
        except ValueError:
            continue
