"""Servers of the cache that outlive the command which started them: a process for each lab, while one of its bridges is there.

There is no daemon: the process ends with the lab's last network, however that went, and when the kit is gone. Its record, in the
run folder, is locked (flock) by the process itself, so that a record without its process is known for one. It runs as nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from pocketcloud.cache.serving import CacheServer, listen, peers_of
from pocketcloud.cache.store import folder_of
from pocketcloud.errors import HostLacks, PartlyDone
from pocketcloud.model.cache import PORT
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import joined
from pocketcloud.system import start

_NOBODY = 65534
_EVERY_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
_BRIDGES = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the cache is served: an address of the host, and the bridge whose end is the server's too (empty: none)."""

    address: str
    bridge: str = ""

    def __str__(self) -> str:
        return f"{self.address}%{self.bridge}" if self.bridge else self.address

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place in `ADDRESS%BRIDGE` or `ADDRESS`; raises ValueError."""
        address, _, bridge = text.partition("%")
        if bridge in (".", "..") or "/" in bridge:
            raise ValueError(f"{bridge!r} is no bridge")
        return cls(str(IPv4Address(address)), bridge)


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: its process, and where it listens."""

    pid: int
    port: int
    places: tuple[Place, ...]


class Servers:
    """The servers of a kit's cache; `folder` is the run folder's part for them."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        self._kit, self._folder = kit, folder

    def record(self, lab: str) -> Path:
        """The record of a lab's server."""
        return self._folder / f"{joined(self._kit.id, lab)}.json"

    def running(self, lab: str) -> Serving | None:
        """The lab's server, None if none runs."""
        return _read(self.record(lab))

    def ensure(self, lab: str, places: Sequence[Place], port: int = PORT) -> Serving:
        """Have the cache served to a lab there, and nowhere else. The caller holds the lab. Raises HostLacks with what the
        server said, if it did not begin."""
        there = self.running(lab)
        if there is not None and (there.port, set(there.places)) == (port, set(places)):
            return there
        self.end(lab)
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        record = self.record(lab)
        log = record.with_suffix(".log")
        options = [word for place in places for word in ("--place", str(place))]
        command = [sys.executable, "-m", "pocketcloud", "cache", "serve", "--kit", self._kit.name, "--port", str(port)]
        child = start([*command, "--record", record, *options], log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (made := self.running(lab)) is None:
            code = child()
            if code is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-4:]
                raise HostLacks(
                    "\n  ".join(
                        ["the cache is not served: " + ("its server ended" if code is not None else "its server is late"), *said]
                    ),
                    hint=f"pocketcloud cache serve --kit {self._kit.name} tries it in the foreground",
                )
            time.sleep(0.02)
        return made

    def end(self, lab: str) -> bool:
        """End the lab's server; whether there was one."""
        record = self.record(lab)
        there = _read(record)
        if there is not None:
            _end(record, there.pid)
        for path in (record, record.with_suffix(".log")):
            path.unlink(missing_ok=True)
        return there is not None

    def end_all(self) -> None:
        """End all servers of the kit."""
        for path in self._folder.glob(f"{joined(self._kit.id, '*')}.json"):
            self.end(path.stem.removeprefix(joined(self._kit.id, "")))


def _read(record: Path) -> Serving | None:
    """What a record says, if its process lives: the lock is its."""
    try:
        handle = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(os.pread(handle, 1 << 16, 0))
            return Serving(int(said["pid"]), int(said["port"]), tuple(Place.parse(place) for place in said["places"]))
        return None
    finally:
        os.close(handle)
    return None


def _end(record: Path, pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            if _read(record) is None:
                return
            time.sleep(0.02)
    raise PartlyDone(f"the server of the cache (process {pid}) does not end", hint="try again; ps shows what holds it")


@contextlib.contextmanager
def recorded(record: Path, port: int, places: Sequence[Place]) -> Iterator[None]:
    """Be the server that a record tells of, for as long as the context lasts. Raises PartlyDone where another is."""
    handle = os.open(record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PartlyDone("another server was quicker", hint="run it again") from None
        text = json.dumps({"pid": os.getpid(), "port": port, "places": [str(place) for place in places]})
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
        yield
    finally:
        os.close(handle)


def serve(
    kit: Kit, places: Sequence[Place], port: int, *, record: Path | None, say: Callable[[str], None], begun: Callable[[str], None]
) -> None:
    """Serve the kit's cache until the last of the bridges, or the kit, is gone; without bridges until Ctrl-C. `begun` is told
    each URL. Raises Refused or HostLacks before anything is served. As root it becomes nobody, for good."""
    folder = folder_of(kit)
    with contextlib.ExitStack() as stack:
        servers: dict[Place, CacheServer] = {}
        for place in places:
            servers[place] = stack.enter_context(listen(folder, place.address, port, peers_of(place.address), say))
            # All modules that reading collections takes are loaded by this: nobody may be unable to.
            len(servers[place].shelf)
        if record is not None:
            stack.enter_context(recorded(record, port, places))
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        for server in servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
            begun(server.url)
        while servers and folder.is_dir():
            time.sleep(_EVERY_SECONDS)
            for place in [place for place in servers if place.bridge and not (_BRIDGES / place.bridge).exists()]:
                server = servers.pop(place)
                say(f"{place.bridge} is gone: the cache is not served on {place.address} any more")
                server.shutdown()
                server.server_close()
        for server in servers.values():
            server.shutdown()
