"""How full a pool may get: when to warn, when to refuse new volumes, and how much is kept back for the way out."""

from __future__ import annotations

from pocketcloud.storage.devmapper import PoolMode, PoolStatus

MIB = 1 << 20
# Of data and of metadata, in percent. A pool without data space pauses its guests; one without metadata space has to be
# repaired offline, and LVM itself only stops at 4 MiB short of that (lvmthin(7)): hence lower marks for it.
WARN_DATA, WARN_METADATA = 80, 70
REFUSE_DATA, REFUSE_METADATA = 90, 75


def percent(used: int, total: int) -> int:
    """Whole percent, rounded up, so that 100 means full and only nothing is 0."""
    return -(-100 * used // total) if total else 0


def _above(status: PoolStatus, data: int, metadata: int) -> str:
    found = []
    if (now := percent(status.data_used, status.data_total)) >= data:
        found.append(f"data {now} % used (limit {data} %)")
    if (now := percent(status.metadata_used, status.metadata_total)) >= metadata:
        found.append(f"metadata {now} % used (limit {metadata} %)")
    return ", ".join(found)


def allowed(status: PoolStatus) -> str:
    """Why new volumes are refused; empty if they are not."""
    if status.mode is PoolMode.FAILED:
        return "has failed"
    if status.needs_check:
        return "needs a check"
    if status.mode is PoolMode.READ_ONLY:
        return "is read-only"
    return _above(status, REFUSE_DATA, REFUSE_METADATA)


def warning(status: PoolStatus) -> str:
    """What there is to warn of; empty if there is nothing."""
    if status.mode is not PoolMode.WRITING or status.needs_check:
        return allowed(status) or "is out of data space"
    return _above(status, WARN_DATA, WARN_METADATA)


def ballast_size(pool: int) -> int:
    """Bytes of the ballast, which is written full and given up when a reset has to work on a full pool: enough for the
    first minutes of some machines' boots, at most a 32nd of the pool."""
    return min(1024 * MIB, pool // 32 // (4 * MIB) * (4 * MIB))
