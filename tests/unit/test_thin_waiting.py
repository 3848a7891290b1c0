"""What the thin store waits for: a volume that somebody has open for a moment. LVM's reports are told here; with a real pool the
same is tried by tests/contract in User-Mode Linux."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketcloud.errors import Refused
from pocketcloud.storage.lvm_thin import ThinPool
from tests.recorded import Recorded

POOL_STATUS = "0 65536 thin-pool 1 20/1024 100/1024 - rw discard_passdown queue_if_no_space - 1024\n"


class Pool:
    """A pool with one live volume, which is open until it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.cloned = False

    def tell(self, argv: tuple[str, ...]) -> str:
        if argv[0] == "dmsetup":
            return POOL_STATUS
        if "lvs" in argv:
            self.looks -= 1
            rows = [_row("pool", "", "thin-pool"), _row("v.disk", "pc:name=disk", opened=self.looks >= 0)]
            rows += [_row("v.above", "pc:name=above", origin="v.disk")] if self.cloned else []
            return json.dumps({"report": [{"lv": rows}]})
        self.cloned = self.cloned or argv == ("lvm",)
        return ""


def _row(name: str, tags: str, kind: str = "thin", *, origin: str = "", opened: bool = False) -> dict[str, str]:
    return {
        "lv_name": name,
        "lv_uuid": name,
        "lv_size": str(8 << 20),
        "pool_lv": "pool" if kind == "thin" else "",
        "origin": origin,
        "lv_tags": tags,
        "lv_attr": "Vwi-aot---",
        "lv_active": "active",
        "lv_device_open": str(int(opened)),
        "thin_id": "1",
        "segtype": kind,
    }


def test_a_clone_waits_for_who_looks_into_its_source_for_a_moment(tmp_path: Path) -> None:
    pool = Pool(looks=3)
    ThinPool("vg", [Path("/dev/none")], tmp_path, Recorded(pool.tell)).clone("disk", "above")
    assert pool.cloned


def test_a_clone_of_what_stays_open_is_refused(tmp_path: Path) -> None:
    pool = Pool(looks=1000)
    with pytest.raises(Refused, match="disk is open for writing"):
        ThinPool("vg", [Path("/dev/none")], tmp_path, Recorded(pool.tell)).clone("disk", "above")
    assert not pool.cloned
