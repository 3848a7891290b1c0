"""Wheels of the Python distributions that run pocketcloud here, to be carried into a new system.

They are made again from what is installed, by its own list of files (RECORD): there need not be a network, nor a checkout. From a
checkout our own is made as `make dist` would, with what lies at the top beside the code (pyproject.toml, force-include).
Sources: PyPA, "Recording installed projects" and "Binary distribution format".
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from pocketcloud import __version__
from pocketcloud.errors import HostLacks
from pocketcloud.model.base import Wheels
from pocketcloud.resources import shipped

OWN = "pocketcloud"
_PACKAGE = Path(__file__).resolve().parents[1]
_BESIDE = ("bases", "kickstarts", "labs", "profiles", "packages.tsv", "usb-bridges.tsv")
# What an installer notes for itself, and what Python makes of the rest.
_NOT_CARRIED = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_ONLY_FOR = re.compile(r"extra\s*==")
# A wheel is a ZIP archive, whose times begin in 1980.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def fingerprint(wheels: Wheels) -> Iterator[tuple[str, bytes]]:
    """What is carried, as names and contents to be keyed by: our own files, and the lists of the others', which hold their sums.
    One that is not installed is named alone: to build will fail."""
    try:
        for name, found in sorted(_closure(wheels).items()):
            if name == OWN:
                sums = hashlib.sha256()
                for path, content in sorted(_own_files().items()):
                    sums.update(f"{path}\0{len(content)}\0".encode() + content)
                yield name, sums.digest()
            else:
                yield name, (found.read_text("RECORD") or found.version).encode()
    except HostLacks as lack:
        yield "lacking", lack.message.encode()


def carried(wheels: Wheels) -> dict[str, bytes]:
    """The wheels by file name. Raises HostLacks if one of them is not installed here by a list of its files."""
    made = (_own() if name == OWN else _again(found) for name, found in sorted(_closure(wheels).items()))
    return dict(made)


def _closure(wheels: Wheels) -> dict[str, Distribution]:
    """The distributions asked for, and all that they require here, by their names in one spelling."""
    found: dict[str, Distribution] = {}
    left_out = {_normal(name) for name in wheels.without}
    wanted = [(name, True) for name in wheels.of]
    while wanted:
        name, asked = wanted.pop()
        key = _normal(name)
        if key in found or key in left_out:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            if asked:
                raise HostLacks(
                    f"the Python that runs pocketcloud has no distribution {name} to carry into the base",
                    hint="install pocketcloud with pip or pipx, or leave it out of `wheels:`",
                ) from None
            continue  # what another system or an older Python takes
        required = (text for text in found[key].requires or () if not _ONLY_FOR.search(text))
        wanted += [(match.group(1), False) for text in required if (match := _REQUIREMENT.match(text))]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _again(found: Distribution) -> tuple[str, bytes]:
    """The wheel that a distribution was installed from, but for its scripts, which say how they are made (entry points)."""
    name, files = found.metadata["Name"], found.files
    tags = [line.partition(":")[2].strip() for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    if files is None or not tags:
        raise HostLacks(
            f"{name} {found.version} was not installed from a wheel (its list of files is missing), so it cannot be carried into"
            " the base",
            hint="install pocketcloud with pip or pipx, in an environment of its own",
        )
    carried = (p for p in files if ".." not in p.parts and "__pycache__" not in p.parts and p.name not in _NOT_CARRIED)
    try:
        contents = {path.as_posix(): Path(str(path.locate())).read_bytes() for path in carried}
    except OSError as error:
        raise HostLacks(
            f"{name} {found.version} is not whole here ({error.filename}: {error.strerror}), so it cannot be carried into the"
            " base",
            hint=f"pip install --force-reinstall {name}=={found.version}, in the environment that runs pocketcloud",
        ) from None
    # Several tags are one compressed set: each part of each, sorted, joined by dots (PEP 425).
    parts = [".".join(dict.fromkeys(part)) for part in zip(*(tag.split("-", 2) for tag in tags), strict=True)]
    stem = f"{_escaped(name)}-{found.version}"
    return f"{stem}-{'-'.join(parts)}.whl", _packed(contents, _info(contents, stem))


def _own() -> tuple[str, bytes]:
    stem = f"{OWN}-{__version__}"
    info = f"{stem}.dist-info"
    contents = dict(_own_files())
    said = distribution(OWN)
    metadata = re.sub(r"(?m)^Version: .*$", f"Version: {__version__}", said.read_text("METADATA") or "", count=1)
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/entry_points.txt"] = (said.read_text("entry_points.txt") or "").encode()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: {stem}\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode()
    return f"{stem}-py3-none-any.whl", _packed(contents, info)


def _own_files() -> Mapping[str, bytes]:
    """Our code and what we ship, by their paths in a wheel."""
    found = dict(_files(_PACKAGE, OWN))
    if not (_PACKAGE / "data").is_dir():
        for name in _BESIDE:
            found |= _files(shipped(name), f"{OWN}/data/{name}")
    return found


def _files(top: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
        if path.is_file() and "__pycache__" not in path.parts:
            below = path.relative_to(top).as_posix()
            yield name if path == top else f"{name}/{below}", path.read_bytes()


def _info(contents: Mapping[str, bytes], stem: str) -> str:
    """The folder that describes the distribution, spelled as its installer left it."""
    return next((path.split("/", 1)[0] for path in contents if path.endswith(".dist-info/METADATA")), f"{stem}.dist-info")


def _escaped(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name)


def _packed(contents: Mapping[str, bytes], info: str) -> bytes:
    """A wheel of these files, the same each time: no clock, and one order."""
    record = [f"{path},sha256={_sum(content)},{len(content)}" for path, content in sorted(contents.items())]
    whole = {**contents, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,", ""]).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, content in sorted(whole.items()):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def _sum(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
