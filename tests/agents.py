"""A guest agent that a test plays itself: what libvirt sends to it comes here, and not into the guest, a boot sector.

The channel's end in the guest is made an ISA serial port, which counts as open without a driver, and its socket one that the
test listens on: QEMU connects to it and is silent, libvirt connects and talks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_CHANNEL = "org.qemu.guest_agent.0"


class Agent:
    """Listens from the beginning; a context manager that ends it.

    It answers what it is asked as one does that has nothing to do, except for the commands in `fails` (by an error with that
    text); while it `hangs` it answers nothing. `heard` has all commands that it was given, with the time and their arguments.
    """

    def __init__(self) -> None:
        self.fails: dict[str, str] = {}
        self.hangs = False
        self.heard: list[tuple[str, float, Mapping[str, Any]]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="pocketcloud-agent-", dir="/var/tmp"))
        self._folder.chmod(0o755)
        self.path = self._folder / "agent.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o777)
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for channel in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
        shutil.rmtree(self._folder)

    def commands(self) -> list[str]:
        """The names of the commands it was given, in order, without those of the protocol itself."""
        return [name for name, _, _ in self.heard if not name.startswith("guest-sync")]

    def domain_xml(self, text: str) -> str:
        """The XML of a domain, `text`, with this agent in its guest."""
        ET.register_namespace("qemu", _QEMU)
        root = ET.fromstring(text)  # noqa: S314 - libvirt's or our own
        (channel,) = (c for c in root.iterfind("devices/channel") if c.find(f"target[@name='{_CHANNEL}']") is not None)
        for name in ("source", "alias"):
            for old in channel.findall(name):
                channel.remove(old)
        channel.insert(0, ET.Element("source", mode="connect", path=str(self.path)))
        ET.SubElement(channel, "alias", name="ua-agent")
        device = ET.SubElement(ET.SubElement(root, f"{{{_QEMU}}}override"), f"{{{_QEMU}}}device", alias="ua-agent")
        frontend = ET.SubElement(device, f"{{{_QEMU}}}frontend")
        ET.SubElement(frontend, f"{{{_QEMU}}}property", name="driver", type="string", value="isa-serial")
        for name in ("bus", "nr", "name"):
            ET.SubElement(frontend, f"{{{_QEMU}}}property", name=name, type="remove")
        return ET.tostring(root, encoding="unicode")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                channel, _ = self._listener.accept()
                self._open.append(channel)
                threading.Thread(target=self._talk, args=(channel,), daemon=True).start()

    def _talk(self, channel: socket.socket) -> None:
        with contextlib.suppress(OSError), channel.makefile("rb") as lines:
            for line in lines:
                # libvirt puts the byte 255 before what shall make a parser begin anew.
                asked = json.loads(line.lstrip(b"\xff"))
                name, arguments = asked["execute"], asked.get("arguments", {})
                self.heard.append((name, time.time(), arguments))
                if self.hangs:
                    continue
                if name.startswith("guest-sync"):
                    before = b"\xff" if name == "guest-sync-delimited" else b""
                    answer: dict[str, Any] = {"return": arguments["id"]}
                elif name in self.fails:
                    before, answer = b"", {"error": {"class": "GenericError", "desc": self.fails[name]}}
                else:
                    before, answer = b"", {"return": 1 if "freeze" in name else {}}
                channel.sendall(before + json.dumps(answer).encode() + b"\n")
