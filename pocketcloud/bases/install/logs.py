"""What a machine said whose installation failed, kept in the kit: `media/logs/BASE-ARCH-TIME/`, a file for each source.

Lines of plain text, without the secrets of the answer file; only root may read them, as a guest may print anything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pocketcloud.bases.answers import MASK
from pocketcloud.bases.install.lines import Lines
from pocketcloud.model.base import Arch
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name

_KEPT = 5
_PIECE = 1 << 20
_MOST = 8 << 20
_ROTATED = 3
"""virtlogd's own number of older pieces (virtlogd.conf, max_backups)."""


def keep_logs(kit: Kit, base: Name, arch: Arch, folder: Path, now: datetime, secrets: tuple[str, ...]) -> Path:
    """Keep the console and the ports of the guest whose `folder` it was, and return where; of the base's older ones four stay."""
    logs = kit.path / "media/logs"
    logs.mkdir(mode=0o755, parents=True, exist_ok=True)
    prefix = f"{base}-{arch}-"
    kept = logs / f"{prefix}{now.strftime('%Y%m%d-%H%M%S')}"
    kept.mkdir(mode=0o700, exist_ok=True)
    for source in sorted(folder.glob("*.log")):
        _plain(source, kept / source.name, secrets)
    for old in sorted(logs.glob(f"{prefix}[0-9]*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return kept


def _plain(source: Path, target: Path, secrets: tuple[str, ...]) -> None:
    lines, left = Lines(), _MOST
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        for piece in _pieces(source):
            for line in lines.feed(piece):
                if left > 0:
                    left -= out.write(_masked(line, secrets) + "\n")
        out.write(_masked(lines.rest, secrets))


def _pieces(source: Path) -> Iterator[bytes]:
    """The log with its older pieces, from the oldest on."""
    older = [source.with_name(f"{source.name}.{number}") for number in reversed(range(_ROTATED + 1))]
    for path in (*older, source):
        if path.is_file():
            with path.open("rb") as read:
                while piece := read.read(_PIECE):
                    yield piece


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text
