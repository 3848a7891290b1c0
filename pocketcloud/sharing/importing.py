"""From a folder, an archive or a git repository to a bundle that may be kept: everything in it is read strictly and judged before
anything is written. Nothing of it is run."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pocketcloud.bases import definitions
from pocketcloud.documents import parse_json, parse_lab
from pocketcloud.errors import BadDocument, Refused
from pocketcloud.model.base import Definition, LayerDefinition
from pocketcloud.model.kit import Kit
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.records import InstanceFiles, read_record
from pocketcloud.resources import shipped
from pocketcloud.sharing.bundle import BUNDLE_SCHEMA, LAB_FILE, MANIFEST, SUMS, Bundle, BundleManifest
from pocketcloud.sharing.git import git_tree, is_address, parse_address
from pocketcloud.sharing.making import templates_of
from pocketcloud.sharing.reading import Tree, check_sums, refusal, shown, tree_at


class Standing(StrEnum):
    """What an imported definition of a base is to this kit."""

    NEW = "new"
    KNOWN = "known"
    OTHER = "other"
    """There is another one of its name here, which is used."""
    NONE = "none"
    """It came without one, and there is none here."""


@dataclass(frozen=True, slots=True)
class SharedBase:
    """A base that an imported lab names, or that one of them stands on."""

    name: Name
    standing: Standing
    definition: Definition | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A lab that may be imported: what it is, where it is from (`commit`: of a git repository, in hex), and what its bases are to
    this kit."""

    source: str
    commit: str
    bundle: Bundle
    bases: tuple[SharedBase, ...]


def read_source(source: str) -> Candidate:
    """What a source holds, judged against the definitions that there are here. Raises NotFound, UsageError for what is no source,
    Refused for what is damaged or hostile, BadDocument for a lab or a definition that is wrong."""
    commit, packed = "", False
    if is_address(source):
        tree, commit = git_tree(parse_address(source))
    else:
        tree, packed = tree_at(Path(source), source)
        if packed and SUMS not in tree.entries:
            raise refusal(
                source, SUMS, "missing; an archive is taken only with the sums of what is in it (pocketcloud lab export)"
            )
    if SUMS in tree.entries:
        tree = check_sums(tree, strict=packed)
    bundle, found = _bundle_in(tree)
    _check_manifest(tree, bundle)
    return Candidate(tree.source, commit, bundle, _standings(bundle, found))


def _bundle_in(tree: Tree) -> tuple[Bundle, Mapping[Name, Definition]]:
    if LAB_FILE not in tree.entries:
        there = ", ".join(sorted(name for name in tree.entries if name.endswith((".yaml", ".yml")))[:5])
        other = f"give the folder that has a {LAB_FILE}; a file of another name is raised by its path: pocketcloud lab up FILE"
        raise Refused(
            f"{shown(tree.source)}: {LAB_FILE}: missing" + (f" (there are: {shown(there)})" if there else ""),
            hint=f"{shown(tree.source)}#REF:FOLDER names the folder that has one" if is_address(tree.source) else other,
        )
    lab = parse_lab(_text(tree, LAB_FILE), f"{tree.source}: {LAB_FILE}", tree.read)
    with tempfile.TemporaryDirectory(prefix="pocketcloud-import-") as place:
        bases, kickstarts = Path(place, "bases"), Path(place, "kickstarts")
        for folder, end in ((bases, ".yaml"), (kickstarts, ".j2")):
            folder.mkdir()
            for name in tree.entries:
                top, _, rest = name.partition("/")
                if top == folder.name and rest.endswith(end) and "/" not in rest:
                    (folder / rest).write_bytes(tree.take(name))
        try:
            found = _used(lab, bases)
        except BadDocument as bad:
            # By the name that it has for whoever gave it, not by that of a folder that is gone.
            source = bad.source.replace(f"{place}/", f"{shown(tree.source)}: ")
            raise BadDocument(source, bad.faults, hint="nothing was kept of it; who wrote it has to mend it") from None
        texts = {name: (bases / f"{name}.yaml").read_bytes() for name in found}
        templates: dict[str, bytes] = {}
        for definition in found.values():
            templates |= templates_of(definition, (kickstarts,))
    return Bundle(lab, dict(sorted(texts.items())), dict(sorted(templates.items()))), found


def _text(tree: Tree, name: str) -> str:
    try:
        return tree.take(name).decode()
    except UnicodeDecodeError as error:
        raise refusal(tree.source, name, f"not UTF-8 text (byte {error.start})") from None


def _used(lab: Lab, folder: Path) -> dict[Name, Definition]:
    """The definitions in `folder` of the lab's bases, and of what these stand on."""
    found: dict[Name, Definition] = {}
    left = [machine.base for machine in lab.machines.values()]
    while left:
        name = left.pop()
        if name not in found and (definition := definitions.find_or_none(name, folder)) is not None:
            found[name] = definition
            left += [definition.from_] if isinstance(definition, LayerDefinition) else []
    return found


def _check_manifest(tree: Tree, bundle: Bundle) -> None:
    if MANIFEST not in tree.entries:
        if SUMS in tree.entries:
            raise refusal(tree.source, MANIFEST, "missing")
        return  # a folder that somebody wrote by hand
    try:
        manifest = parse_json(_text(tree, MANIFEST), BundleManifest, MANIFEST)
    except BadDocument as bad:
        raise refusal(tree.source, MANIFEST, bad.message.splitlines()[0]) from None
    if manifest.schema != BUNDLE_SCHEMA:
        raise Refused(
            f"{tree.source}: of schema {manifest.schema}; this pocketcloud knows {BUNDLE_SCHEMA}", hint="renew pocketcloud"
        )
    if manifest.lab != bundle.lab.lab:
        raise refusal(tree.source, MANIFEST, f"speaks of lab {manifest.lab}, and {LAB_FILE} of {bundle.lab.lab}")
    bases = {f"bases/{name}.yaml": content for name, content in bundle.bases.items()}
    _check_named(tree, {f"bases/{name}.yaml": digest for name, digest in manifest.bases.items()}, bases)
    templates = {name: tree.take(name) for name in (f"kickstarts/{each}" for each in bundle.templates) if name in tree.entries}
    _check_named(tree, {f"kickstarts/{name}": digest for name, digest in manifest.templates.items()}, templates)


def _check_named(tree: Tree, named: Mapping[str, str], there: Mapping[str, bytes]) -> None:
    """Refuse a tree of which other files would be used than its manifest names, by path and digest (empty: there is none)."""
    for name in sorted({*named, *there}):
        digest = hashlib.sha256(there[name]).hexdigest() if name in there else ""
        if named.get(name, "") != digest:
            wrong = f"not the one that {MANIFEST} names" if digest else f"missing, though {MANIFEST} names it"
            raise refusal(tree.source, name, wrong)


def _standings(bundle: Bundle, found: Mapping[Name, Definition]) -> tuple[SharedBase, ...]:
    """Raises Refused where another imported lab has brought another definition of the same name, or other templates for it."""
    lab = bundle.lab
    bases = []
    parents = {definition.from_ for definition in found.values() if isinstance(definition, LayerDefinition)}
    lacking = {name for name in parents if definitions.find_or_none(name) is None}
    for name in sorted({*found, *lacking, *(machine.base for machine in lab.machines.values())}):
        own, definition = definitions.find_or_none(name), found.get(name)
        if definition is None:
            bases.append(SharedBase(name, Standing.KNOWN if own else Standing.NONE, own))
        elif own is None or own == definition:
            if (came := definitions.came_with(name)) and _other_templates(definition, came, bundle):
                raise Refused(
                    f"base {name}: lab {came.name}, imported before, has other templates for its installer",
                    hint=f"two bases of one name cannot be; name one of them anew, in its lab and in bases/{name}.yaml",
                )
            bases.append(SharedBase(name, Standing.KNOWN if own else Standing.NEW, definition))
        elif came := definitions.came_with(name):
            raise Refused(
                f"base {name}: lab {came.name}, imported before, has another definition of it",
                hint=f"two bases of one name cannot be; name one of them anew, in its lab and in bases/{name}.yaml",
            )
        else:
            bases.append(SharedBase(name, Standing.OTHER, definition))
    return tuple(bases)


def _other_templates(definition: Definition, came: Path, bundle: Bundle) -> bool:
    """Whether its installer would be answered otherwise than with what an imported lab brought with it."""
    there = templates_of(definition, (came / "kickstarts",))
    return any(bundle.templates.get(name) != text for name, text in there.items())


def check_name(kit: Kit, name: Name, lab: Lab) -> None:
    """Refuse a name that already means something else here: a lab that we ship, or an instance of another one in the kit."""
    record = read_record(InstanceFiles(kit, name))
    if record is not None and record.lab != lab:
        raise Refused(
            f"kit {kit.name} has a lab {name}, raised from something else", hint="--as OTHER imports it under that name"
        )
    if shipped("labs", f"{name}.yaml").exists():
        from pocketcloud.documents import load_lab

        if load_lab(shipped("labs", f"{name}.yaml")) != lab:
            raise Refused(
                f"{name} is a lab that pocketcloud ships, and this is another", hint="--as OTHER imports it under that name"
            )
