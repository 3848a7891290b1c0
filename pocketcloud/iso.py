"""Small ISO images that guests take their answers from: cloud-init's seed (CIDATA), Anaconda's (OEMDRV). The only writer of ISOs.

Two images of the same files differ, by the times in them: what depends on the files is to be keyed by these.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import pycdlib


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
