"""A shared lab as files: lab.yaml, the definitions of its bases, their templates, large files, a manifest, and the sums of all.

The same lab gives the same bytes with the same pocketcloud, whatever order or form it was read in. Nothing of a kit is in it: no
keys, no host keys, no addresses.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pocketcloud import __version__
from pocketcloud.documents import dump_json, parse_lab, plain
from pocketcloud.errors import BadDocument, Refused
from pocketcloud.model.base import key_of
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, KIB, MIB, TIB, Duration, Size
from pocketcloud.yaml_text import yaml_text

LAB_FILE, MANIFEST, SUMS = "lab.yaml", "pocketcloud-lab.json", "SHA256SUMS"
BUNDLE_SCHEMA = 1
# Longer ones make lab.yaml hard to read, and a lab file has a bound.
_LONGEST_INLINE = 4096


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """`pocketcloud-lab.json`: what this is, by what version it was written, and the SHA-256 (hex) of the definition of each base,
    empty where there was none, and of each template."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    schema: int
    lab: Name
    made_with: str
    bases: Mapping[Name, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A lab to be shared. `bases`: the text of the definitions of its bases, and of those that these stand on; `templates`: that
    of the templates of their installers, by file name."""

    lab: Lab
    bases: Mapping[Name, bytes] = field(default_factory=dict)
    templates: Mapping[str, bytes] = field(default_factory=dict)


def contents(bundle: Bundle) -> dict[str, bytes]:
    """The files of a bundle by their paths, in order. Raises Refused if the lab is too large for a lab file."""
    text, files = lab_text(bundle.lab)
    wanted = sorted({machine.base for machine in bundle.lab.machines.values()} | set(bundle.bases))
    sums = {name: hashlib.sha256(bundle.bases[name]).hexdigest() if name in bundle.bases else "" for name in wanted}
    templates = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(bundle.templates.items())}
    found = {
        LAB_FILE: text.encode(),
        MANIFEST: dump_json(BundleManifest(BUNDLE_SCHEMA, bundle.lab.lab, __version__, sums, templates)).encode(),
        **files,
        **{f"bases/{name}.yaml": content for name, content in bundle.bases.items()},
        **{f"kickstarts/{name}": content for name, content in bundle.templates.items()},
    }
    listed = "".join(f"{hashlib.sha256(found[path]).hexdigest()}  {path}\n" for path in sorted(found))
    return {path: found[path] for path in sorted(found)} | {SUMS: listed.encode()}


def archive(files: Mapping[str, bytes], folder: str) -> bytes:
    """The files as a .tar.gz with all in one folder; nothing in it tells when, where or by whom it was made."""
    packed = io.BytesIO()
    # No name and no time in gzip's header either.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{path}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def lab_text(lab: Lab) -> tuple[str, dict[str, bytes]]:
    """A lab as its file would say it, what is as by default left out, and the files that this names, by path. It reads back
    equal. Raises Refused if it is too large for a lab file."""
    raw = _lean(lab)
    files: dict[str, bytes] = {}
    for machine in raw["machines"].values():
        for step in machine.get("provision", ()):
            content = step.get("content", "").encode()
            if "write" in step and not content:
                step["content"] = ""
            if len(content) > _LONGEST_INLINE:
                del step["content"]
                path = f"files/{hashlib.sha256(content).hexdigest()[:12]}-{_file_name(step['write'])}"
                files[path] = content
                step["from"] = path
    text = yaml_text(raw)
    try:
        if parse_lab(text, LAB_FILE, files.__getitem__) != lab:
            raise AssertionError("a lab was not written as it is")
    except BadDocument as bad:
        raise Refused(f"lab {lab.lab} cannot be written as a lab file: {bad.message.splitlines()[0]}") from bad
    return text, files


def _file_name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.rpartition("/")[2])[:60] or "file"


def _lean(value: Any) -> Any:
    """A model value as plain ones for people: sizes and times with their units, no key that says what it says if left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key_of(f.name): _lean(own) for f in dataclasses.fields(value) if (own := getattr(value, f.name)) != _default(f)}
    if isinstance(value, Mapping):
        return {str(key): _lean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lean(item) for item in value]
    if isinstance(value, Size):
        units = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
        return next((f"{value // unit}{name}" for unit, name in units if value % unit == 0), int(value))
    if isinstance(value, Duration):
        return f"{int(value)}s" if value.is_integer() else float(value)
    return plain(value)


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default
