"""What a kit's stream says of the kit: the header, the manifest, what was shipped, the volumes and their maps, as values.

Nothing of it is taken on trust, and nothing that LVM gets was text in the stream: a group is put together anew out of values
that were looked at, one by one.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

from pocketcloud.copies.shipped import Kept, Shipped, ShippedBase
from pocketcloud.copies.stream import damaged
from pocketcloud.errors import Refused
from pocketcloud.model.kit import KIT_SCHEMA, Manifest
from pocketcloud.model.names import Name
from pocketcloud.storage.lvm import LogicalVolume
from pocketcloud.storage.lvm_copy import fresh_uuid
from pocketcloud.storage.lvm_text import Section
from pocketcloud.storage.thin_metadata import PoolMap, ThinDevice
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, EXTENT, NAME, POOL, STATE, is_logical, is_name

MOST_RUNS = 1 << 19
"""How many runs all volumes of a stream map together, at most: each takes some 150 bytes of memory while it is read."""

_LARGEST_ID, _LARGEST_TIME, _LARGEST_CHUNK = (1 << 24) - 1, (1 << 24) - 1, 1 << 40
_LARGEST = 1 << 50
_LEAST_CHUNK, _MOST_CHUNK = 64 << 10, 1 << 30
_UUID = re.compile(r"[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}")
_TAG = re.compile(r"pc:[a-z]{1,30}(=[A-Za-z0-9._:-]{0,255})?")
_GENERATION = re.compile(r"[0-9a-f]{8}")
_PRINTABLE = re.compile(r"[ -~]{0,400}")
_POOL_HEAD, _DEVICE_HEAD = struct.Struct("<QQQQ"), struct.Struct("<QQQQQ")
_FIELDS = 4
_RUN = 8 * _FIELDS
_MOST_TAGS = 64


@dataclass(frozen=True, slots=True)
class Header:
    """What the reader knows before all else: sizes of the pool's chunks and of sectors (bytes; 0: of none), how many volumes and
    runs there are, the bytes of data, those in use of the pool's metadata and of the kit's own files."""

    chunk: int
    sector: int
    volumes: int
    runs: int
    data: int
    metadata: int
    files: int


@dataclass(frozen=True, slots=True)
class StreamVolume:
    """A thin volume: LVM's name and UUID of it, its size (bytes), id in the pool, LVM's count when it was made, the name of what
    it was cloned from (may be empty), whether it can be written to, and its tags."""

    name: str
    uuid: str
    size: int
    thin_id: int
    transaction: int
    origin: str
    writable: bool
    tags: tuple[str, ...]


# -- JSON, strictly and in bounded memory: what is wrong first ends it


def _told(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _parsed(content: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError):
        raise damaged(f"{what} is no JSON") from None
    if not isinstance(found, dict):
        raise damaged(f"{what} is no object")
    return found


def _fields(raw: object, kinds: Mapping[str, type], what: str) -> dict[str, Any]:
    """The object with exactly these keys, whose values are exactly of these types."""
    if not isinstance(raw, dict) or raw.keys() != kinds.keys():
        raise damaged(f"{what} has other parts than it should")
    for key, kind in kinds.items():
        if type(raw[key]) is not kind:
            raise damaged(f"{key} of {what} is no {kind.__name__}")
        if kind is int and not 0 <= raw[key] <= _LARGEST:
            raise damaged(f"{key} of {what} is out of range")
        if kind is str and not _PRINTABLE.fullmatch(raw[key]):
            raise damaged(f"{key} of {what} has letters that it may not have")
    return raw


def _texts(raw: list[object], what: str) -> tuple[str, ...]:
    for text in raw:
        if not isinstance(text, str) or not _PRINTABLE.fullmatch(text):
            raise damaged(f"{what} is no list of texts")
    return tuple(map(str, raw))


# -- header


def header_text(header: Header) -> bytes:
    """The header as it stands in the stream."""
    return _told({name: getattr(header, name) for name in Header.__slots__})


def read_header(content: bytes) -> Header:
    """The header out of its section."""
    header = Header(**_fields(_parsed(content, "the header"), dict.fromkeys(Header.__slots__, int), "the header"))
    if header.chunk % _LEAST_CHUNK or not _LEAST_CHUNK <= header.chunk <= _MOST_CHUNK:
        raise damaged(f"its pool is in chunks of {header.chunk} bytes")
    if header.sector not in (0, 512, 4096):
        raise damaged(f"its sectors are of {header.sector} bytes")
    if header.runs > MOST_RUNS or header.volumes > _LARGEST_ID or header.data % header.chunk:
        raise damaged("its header tells of more than a stream can have")
    return header


# -- manifest

_MANIFEST = {
    "schema": int, "id": str, "name": str, "created": str, "made_with": str, "storage": str, "sector_size": int,
    "derived_from": str, "arch": str, "made_on": dict,
}  # fmt: skip


def manifest_text(manifest: Manifest) -> bytes:
    """The kit's manifest, without what tells of one computer."""
    return _told({name: getattr(manifest, name) for name in _MANIFEST} | {"made_on": dict(manifest.made_on)})


def read_manifest_section(content: bytes, header: Header) -> Manifest:
    """The manifest out of its section."""
    raw = _fields(_parsed(content, "the manifest"), _MANIFEST, "the manifest")
    if raw["schema"] != KIT_SCHEMA or raw["storage"] != "lvm" or raw["sector_size"] != header.sector:
        raise damaged("its kit is of another kind")
    if not all(_is_id(raw[key]) for key in ("id", "derived_from") if key == "id" or raw[key]):
        raise damaged("its kit has no id")
    made_on = raw["made_on"]
    _texts([*made_on, *made_on.values()], "what the kit was made on")
    try:
        name = Name.parse(raw["name"])
    except ValueError:
        raise damaged("its kit has no name") from None
    return Manifest(**{**raw, "name": name})


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


# -- what was shipped

_SHIPPED = {
    "generation": str, "number": int, "kit": str, "made": str, "volumes": list, "bases": list, "labs": list, "files": str,
}  # fmt: skip


def shipped_text(shipped: Shipped) -> bytes:
    """A generation as it stands in the stream; the digests of its content follow from the data."""
    return _told({
        "generation": shipped.generation, "number": shipped.number, "kit": shipped.kit, "made": shipped.made,
        "volumes": [[kept.name, kept.uuid, kept.holder] for kept in shipped.volumes],
        "bases": [[base.name, base.arch, base.digest, base.volume] for base in shipped.bases],
        "labs": list(shipped.labs), "files": shipped.files,
    })  # fmt: skip


def read_shipped(content: bytes) -> Shipped:
    """The generation out of its section."""
    raw = _fields(_parsed(content, "what was shipped"), _SHIPPED, "what was shipped")
    # It names a file.
    if not _GENERATION.fullmatch(raw["generation"]) or not _is_id(raw["kit"]):
        raise damaged("what was shipped has no name")
    volumes = tuple(Kept(*words) for words in _rows(raw["volumes"], 3))
    bases = tuple(ShippedBase(*words) for words in _rows(raw["bases"], 4))
    labs = _texts(raw["labs"], "the labs")
    return Shipped(raw["generation"], raw["kit"], raw["made"], volumes, bases, labs, raw["files"], raw["number"])


def _rows(raw: list[object], count: int) -> Iterator[tuple[str, ...]]:
    for row in raw:
        if not isinstance(row, list) or len(row) != count:
            raise damaged("what was shipped has other parts than it should")
        yield _texts(row, "what was shipped")


# -- volumes

_VOLUME = {
    "name": str, "uuid": str, "size": int, "thin_id": int, "transaction": int, "origin": str, "writable": bool, "tags": list,
}  # fmt: skip


def volumes_of(group: Section, rows: Iterable[LogicalVolume]) -> tuple[StreamVolume, ...]:
    """The thin volumes of a kit, by LVM's text of the group and its rows."""
    parts = group["logical_volumes"]
    found = []
    for row in rows:
        volume = parts.get(row.name) if isinstance(parts, dict) else None
        segment = volume.get("segment1") if isinstance(volume, dict) else None
        if not row.thin or not isinstance(segment, dict):
            continue
        transaction, origin = segment.get("transaction_id", 0), str(segment.get("origin", ""))
        if not isinstance(transaction, int) or not isinstance(parts, dict):
            continue
        origin = origin if origin in parts else ""
        tags = tuple(sorted(row.tags))
        found.append(StreamVolume(row.name, row.uuid, row.size, row.thin_id, transaction, origin, row.writable, tags))
    return tuple(sorted(found, key=lambda volume: volume.thin_id))


def volumes_text(volumes: Iterable[StreamVolume]) -> bytes:
    """The volumes as they stand in the stream."""
    return _told({"volumes": [{key: getattr(volume, key) for key in _VOLUME} for volume in volumes]})


def read_volumes(content: bytes, header: Header) -> tuple[StreamVolume, ...]:
    """The volumes out of their section."""
    raw = _fields(_parsed(content, "the list of volumes"), {"volumes": list}, "the list of volumes")["volumes"]
    if len(raw) != header.volumes:
        raise damaged("it has not as many volumes as its header says")
    found = tuple(_volume(each) for each in raw)
    names = {volume.name for volume in found}
    if len(names) < len(found) or len({volume.uuid for volume in found}) < len(found) or CONTENT not in names:
        raise damaged("it has a volume twice, or not those of a kit")
    if any(one.thin_id >= two.thin_id for one, two in zip(found, islice(found, 1, None), strict=False)):
        raise damaged("its volumes are not in order")
    if any(volume.origin and (volume.origin not in names or volume.origin == volume.name) for volume in found):
        raise damaged("it has a volume that was cloned from none")
    return found


def _volume(raw: object) -> StreamVolume:
    told = _fields(raw, _VOLUME, "a volume")
    volume = StreamVolume(**{**told, "tags": _texts(told["tags"], "the tags of a volume")})
    if volume.name not in (CONTENT, BALLAST) and not is_logical(volume.name):
        raise damaged(f"it has a volume named {volume.name[:60]!r}")
    if not _UUID.fullmatch(volume.uuid) or not 1 <= volume.thin_id <= _LARGEST_ID:
        raise damaged(f"its volume {volume.name} has no id")
    if volume.size % EXTENT or not volume.size:
        raise damaged(f"its volume {volume.name} is of {volume.size} bytes")
    if len(volume.tags) > _MOST_TAGS or len(set(volume.tags)) < len(volume.tags):
        raise damaged(f"its volume {volume.name} has too many tags")
    for tag in volume.tags:
        key, _, value = tag.partition("=")
        if not _TAG.fullmatch(tag) or (key == NAME and not is_name(value)):
            raise damaged(f"its volume {volume.name} has a tag that is none of a kit's")
    return volume


def row_of(volume: StreamVolume) -> LogicalVolume:
    """A volume as LVM would report it."""
    return LogicalVolume(
        volume.name, volume.uuid, volume.size, POOL, volume.origin, frozenset(volume.tags), volume.writable, active=False,
        open=False, thin_id=volume.thin_id, segtype="thin",
    )  # fmt: skip


def group_of(volumes: Iterable[StreamVolume], chunk: int, transaction: int) -> Section:
    """LVM's description of a group with these volumes, as it makes one itself; the sizes of what is no thin volume, and where it
    lies, are for `copied_group`."""
    parts: Section = {STATE: _plain(visible=True)}
    parts[POOL] = {
        **_plain(visible=True), "flags": ["ERROR_WHEN_FULL"], "segment_count": 1,
        "segment1": {
            "start_extent": 0, "extent_count": 1, "type": "thin-pool", "metadata": f"{POOL}_tmeta", "pool": f"{POOL}_tdata",
            "transaction_id": transaction, "chunk_size": chunk // 512, "discards": "passdown", "zero_new_blocks": 1,
        },
    }  # fmt: skip
    for volume in volumes:
        parts[volume.name] = {
            "id": volume.uuid, "status": ["READ", "WRITE", "VISIBLE"] if volume.writable else ["READ", "VISIBLE"], "flags": [],
            **({"tags": list(volume.tags)} if volume.tags else {}), "segment_count": 1,
            "segment1": {
                "start_extent": 0, "extent_count": volume.size // EXTENT, "type": "thin", "thin_pool": POOL,
                "transaction_id": volume.transaction, "device_id": volume.thin_id,
                **({"origin": volume.origin} if volume.origin else {}),
            },
        }  # fmt: skip
    parts |= {name: _plain(visible=False) for name in ("lvol0_pmspare", f"{POOL}_tmeta", f"{POOL}_tdata")}
    return {
        "id": fresh_uuid(), "seqno": 1, "format": "lvm2", "status": ["RESIZEABLE", "READ", "WRITE"], "flags": ["NOAUTOACTIVATE"],
        "tags": [], "extent_size": EXTENT // 512, "max_lv": 0, "max_pv": 0, "metadata_copies": 0, "physical_volumes": {},
        "logical_volumes": parts,
    }  # fmt: skip


def _plain(*, visible: bool) -> Section:
    return {"id": fresh_uuid(), "status": ["READ", "WRITE", *(["VISIBLE"] if visible else [])], "flags": []}


# -- the map


def map_bytes(pool: PoolMap) -> bytes:
    """The map of the pool as it stands in the stream. Raises Refused for one that is too long."""
    if (runs := runs_of(pool)) > MOST_RUNS:
        raise Refused(
            f"the kit's volumes lie in {runs} runs, a stream has {MOST_RUNS} at most",
            hint="copy it to a disk: pocketcloud kit clone",
        )
    parts = [_POOL_HEAD.pack(pool.time, pool.transaction, pool.chunks, len(pool.devices))]
    for number, device in sorted(pool.devices.items()):
        packed = device.packed
        parts.append(_DEVICE_HEAD.pack(number, device.transaction, device.created, device.snapped, len(packed) // _FIELDS))
        parts.append(_little(packed).tobytes())
    return b"".join(parts)


def runs_of(pool: PoolMap) -> int:
    """How many runs all its volumes map."""
    return sum(len(device.packed) for device in pool.devices.values()) // _FIELDS


def _little(packed: array[int]) -> array[int]:
    if sys.byteorder == "big":
        packed = array("Q", packed)
        packed.byteswap()
    return packed


def read_map_bytes(content: bytes, header: Header, volumes: Iterable[StreamVolume]) -> PoolMap:
    """The map out of its section, held against the header and the volumes."""
    view = memoryview(content)
    try:
        pool_time, transaction, chunks, count = _POOL_HEAD.unpack_from(view)
        at, total, devices = _POOL_HEAD.size, 0, {}
        sizes = {volume.thin_id: volume for volume in volumes}
        if pool_time > _LARGEST_TIME or transaction > _LARGEST or not 0 < chunks <= _LARGEST_CHUNK or count != len(sizes):
            raise damaged("its map is of no pool that there can be")
        for _ in range(count):
            number, made, created, snapped, runs = _DEVICE_HEAD.unpack_from(view, at)
            at += _DEVICE_HEAD.size
            volume, total = sizes.get(number), total + runs
            if volume is None or number in devices or total > header.runs or created > _LARGEST_TIME or snapped > _LARGEST_TIME:
                raise damaged("its map has other volumes than it should")
            if made > transaction or volume.transaction > transaction:
                raise damaged(f"its volume {volume.name} was made after the pool was")
            if len(view) - at < runs * _RUN:
                raise damaged("its map is cut short")
            packed: array[int] = array("Q")
            packed.frombytes(view[at : at + runs * _RUN])
            at += runs * _RUN
            packed = _little(packed)
            _check_runs(packed, volume.size // header.chunk + bool(volume.size % header.chunk), chunks)
            devices[number] = ThinDevice(number, made, created, snapped, packed)
    except struct.error:
        raise damaged("its map is cut short") from None
    if at != len(view) or total != header.runs:
        raise damaged("its map is not as long as its header says")
    return PoolMap(header.chunk, chunks, pool_time, transaction, devices)


def _check_runs(packed: array[int], size: int, chunks: int) -> None:
    end = 0
    for at in range(0, len(packed), _FIELDS):
        origin, data, length, time = packed[at : at + _FIELDS]
        if origin < end or not 0 < length <= chunks or time > _LARGEST_TIME:
            raise damaged(f"its map is not in order, at chunk {origin} of a volume")
        end = origin + length
        if end > size or data + length > chunks:
            raise damaged(f"its map leads past the end of a volume or of the pool, at chunk {origin}")
