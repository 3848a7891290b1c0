"""ISO images: small ones are made, which guests take their answers from (CIDATA, OEMDRV), and files are taken out of installers'.

Two images of the same files differ, by the times in them: what depends on the files is to be keyed by these.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pycdlib
import pycdlib.pycdlibexception
from pycdlib.dr import DirectoryRecord
from pycdlib.udf import UDFFileEntry

_DAMAGE = (pycdlib.pycdlibexception.PyCdlibException, struct.error, IndexError)
"""What pycdlib ends in over an ISO that is none, or is damaged."""


def iso_image(label: str, files: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image with Joliet and Rock Ridge, labelled `label` (capital letters), that holds `files` in its root."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    try:
        for number, (name, content) in enumerate(files.items()):
            # ISO 9660 itself allows capital letters only; Rock Ridge and Joliet carry the real names.
            iso.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


def volume_label(image: Path) -> str:
    """The label of an ISO's volume. Raises OSError, ValueError for a file that is no ISO."""
    with _opened(image) as iso:
        label: bytes = iso.pvd.volume_identifier
        return label.decode("ascii", "replace").rstrip()


def extract(image: Path, inside: str, target: Path) -> None:
    """Write the file at the path `inside` of an ISO to `target`. Found by its Rock Ridge or Joliet name, else by its plain one in
    capital letters. Raises OSError, ValueError for a file that is no ISO or is damaged, KeyError where it holds no such file."""
    with _opened(image) as iso:
        ways = [{"rr_path": inside}] if iso.has_rock_ridge() else []
        ways += [{"joliet_path": inside}] if iso.has_joliet() else []
        ways += [{"iso_path": f"{inside.upper()}{end}"} for end in (";1", ".;1")]
        for way in ways:
            try:
                entry = iso.get_record(**way)
            except pycdlib.pycdlibexception.PyCdlibException:
                continue
            if entry.is_file():
                _check_end(image, iso, entry, inside)
                iso.get_file_from_iso(str(target), **way)
                return
    raise KeyError(inside)


def _check_end(image: Path, iso: pycdlib.PyCdlib, entry: DirectoryRecord | UDFFileEntry, inside: str) -> None:
    """Raise ValueError if the ISO ends in the middle of a file: pycdlib takes it for one that is so long."""
    size, block = image.stat().st_size, iso.pvd.logical_block_size()
    if entry.extent_location() * block + entry.get_data_length() >= size < iso.pvd.space_size * block:
        raise ValueError(f"it ends in the middle of {inside}")


@contextmanager
def _opened(image: Path) -> Iterator[pycdlib.PyCdlib]:
    iso = pycdlib.PyCdlib()
    try:
        iso.open(str(image))
    except _DAMAGE as wrong:
        raise ValueError(f"it is no ISO image ({wrong})") from None
    try:
        yield iso
    except _DAMAGE as wrong:
        raise ValueError(f"it is damaged ({wrong})") from None
    finally:
        iso.close()
