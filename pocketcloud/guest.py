"""The only paramiko: come in, run commands, write and copy files; wait for a guest's ssh.

The host key is ours and known beforehand, so a guest is verified from its first byte: another key is an error, never a question.
What needs no login (TCP ports, the console) is in readiness.py; text for OpenSSH's client in ssh_config.py.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import logging
import posixpath
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paramiko

from pocketcloud.errors import GuestFailed, NoSpace, NotReady, Refused
from pocketcloud.guest_files import get_tree, put_tree
from pocketcloud.readiness import POLL_SECONDS, PROBE_SECONDS, WaitInterrupted, console_has, tcp_open, wait_console, wait_tcp

__all__ = [
    "CopyFailed",
    "Guest",
    "GuestCompleted",
    "HostKeyMismatch",
    "Login",
    "LoginRefused",
    "Unreachable",
    "WaitInterrupted",
    "console_has",
    "tcp_open",
    "wait_console",
    "wait_ssh",
    "wait_tcp",
]

# paramiko tells what went wrong by its exceptions as well; without a handler logging would print it all to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_TCP_SECONDS = 10.0
# A guest that boots under emulation with others beside it has been seen to need 15 s for its banner.
_PATIENCE_SECONDS = 60.0
# A peer that is gone without a word (guest killed, host asleep) is noticed after this time, not after TCP's quarter of an hour.
_SILENCE_SECONDS = 90
_KEEPALIVE_SECONDS = 15
_TICK_SECONDS = 0.2
# A background process may hold the command's output open for ever; after the command's end it is given so much silence.
_LINGER_SECONDS = 5.0
_CHUNK = 64 * 1024
_TAIL = 64 * 1024


class Unreachable(GuestFailed):
    """Nothing answers there, what answers is not ssh, or the connection broke."""


class HostKeyMismatch(GuestFailed):
    """Something answers there with another host key than the machine's: it is not the machine. Trying again is no use."""


class LoginRefused(GuestFailed):
    """The right machine answered and did not take our key."""


class CopyFailed(Refused):
    """A file could not be read or written, in the guest or here."""


@dataclass(frozen=True, slots=True)
class Login:
    """How to come in. `host_key` is "ssh-ed25519 AAAA..."; `private_key` is the text of an ed25519 key in OpenSSH's PEM."""

    address: str
    host_key: str
    private_key: str = field(repr=False)
    user: str = "root"
    port: int = 22


@dataclass(frozen=True, slots=True)
class GuestCompleted:
    """What a command in a guest said. `code` is its exit code; 128 + n if signal n ended it, -1 if one ended the whole shell."""

    code: int
    out: bytes
    err: bytes


class Guest:
    """A connection to a guest; a context manager. Several threads may run commands on it at once."""

    def __init__(self, login: Login, client: paramiko.SSHClient) -> None:
        self._login = login
        self._client = client

    @classmethod
    def connect(cls, login: Login, *, timeout: float, stop: threading.Event | None = None) -> Guest:
        """Come in within `timeout` seconds, key exchange and login included (under emulation these alone can take 15 s).

        Raises Unreachable (after 10 s at most if nobody answers at all; soon after `stop` is set), HostKeyMismatch, LoginRefused.
        """
        return _connect(login, time.monotonic() + timeout, stop or threading.Event())

    def close(self) -> None:
        """End the connection; commands that still run on it in other threads raise Unreachable."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(
        self,
        command: str,
        *,
        stdin: bytes | None = None,
        timeout: float | None = None,
        on_output: Callable[[bytes, bool], None] | None = None,
        stop: threading.Event | None = None,
    ) -> GuestCompleted:
        """Give `command` to the user's login shell and wait for its end.

        `stdin` is what it reads (nothing by default). `on_output` is called with each piece of output as it comes and whether
        it is from standard error; then only the last 64 KiB of each stream are in the answer. `timeout` is in seconds.

        Raises NotReady when the time is up, WaitInterrupted when `stop` is set (the command may go on in the guest then, until
        it writes), Unreachable when the connection breaks. A background process that keeps the output open is waited for
        until it is silent for 5 s.
        """
        output = _Output(on_output)
        with contextlib.closing(self._channel()) as channel:
            try:
                # Two newlines end a comment and a trailing backslash as well. The `exit` keeps the shell from turning itself
                # into the command: so it lives to report a signal as 128 + n, which paramiko does not pass on.
                channel.exec_command(f"{command}\n\nexit".encode("utf-8", "surrogateescape"))
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise Unreachable(f"{self._where}: {_reason(error)}") from None
            threading.Thread(target=_feed, args=(channel, stdin or b""), daemon=True).start()
            limit = float("inf") if timeout is None else time.monotonic() + timeout
            self._follow(channel, output, limit, stop or threading.Event())
            code = channel.exit_status if channel.status_event.is_set() else -1
            # sshd says EOF before it closes a channel, also after a signal; a broken connection says nothing.
            if code == -1 and not channel.eof_received:
                raise Unreachable(f"{self._where}: the connection broke while a command ran")
        return GuestCompleted(code, bytes(output.out), bytes(output.err))

    def _follow(self, channel: paramiko.Channel, output: _Output, limit: float, stop: threading.Event) -> None:
        started = last = time.monotonic()
        # Not select() on the channel: its pipe is closed with it, and a piece that comes in at that moment ends paramiko's
        # thread, and with it the connection (paramiko issues 1700 and 2271).
        arrived = threading.Event()
        channel.in_buffer.set_event(arrived)
        channel.in_stderr_buffer.set_event(arrived)
        while True:
            # Asked before the buffers are looked at: what comes in between is then still fetched.
            exited = channel.status_event.is_set()
            ended = channel.closed or (exited and channel.eof_received)
            some = output.take(channel)
            now = time.monotonic()
            last = now if some else last
            if (ended and not some) or (exited and now - last > _LINGER_SECONDS):
                return
            if stop.is_set():
                raise WaitInterrupted(f"{self._where}: interrupted")
            if now >= limit:
                raise NotReady(f"{self._where}: a command did not end within {now - started:.0f} s")
            if some:
                # A buffer that was emptied clears the event for both: nobody may wait before both were found empty.
                continue
            # From the end of the output on its event is always set.
            event = channel.status_event if channel.eof_received else arrived
            event.wait(min(_TICK_SECONDS, limit - now))

    def write(self, path: str, content: bytes, mode: int, *, stop: threading.Event | None = None) -> None:
        """Write a file whole or not at all; makes its folders (0755). A symbolic link at `path` is replaced, not followed.

        Raises CopyFailed, Unreachable, WaitInterrupted when `stop` is set.
        """
        temp = posixpath.join(posixpath.dirname(path), f".{secrets.token_hex(8)}.part")
        words = ("sh", "-c", _WRITE, "sh", posixpath.dirname(path) or ".", temp, path, f"{mode:04o}", str(len(content)))
        if "\0" in path:
            raise CopyFailed(f"{self._where}: {path!r} is not a path")
        done = self.run(shlex.join(words), stdin=content, stop=stop)
        if done.code != 0:
            said = done.err.decode(errors="replace").strip() or f"exit code {done.code}"
            raise CopyFailed(f"{self._where}: {path} cannot be written: {said}")

    def put(self, local: Path, remote: str) -> None:
        """Copy a file, or a folder with all that is in it, into the guest; modes are kept, owners and times are not.

        If `remote` is a folder or ends in "/", the copy goes into it under its own name. Files are replaced whole. Symbolic links
        within a folder are copied as links. Raises CopyFailed, also (at the end) for what is neither file, folder nor link.
        """
        with self._files(f"{local} to {remote}") as sftp:
            put_tree(sftp, local, remote)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file, or a folder with all that is in it, out of the guest; otherwise as `put`.

        The guest is not trusted: names that climb out of the folder are refused, links are made last and never followed, set-uid
        and set-gid bits are dropped.
        """
        with self._files(f"{remote} to {local}") as sftp:
            get_tree(sftp, remote, local)

    @contextlib.contextmanager
    def _files(self, what: str) -> Iterator[paramiko.SFTPClient]:
        situation = f"{self._where}: cannot copy {what}"
        try:
            sftp = paramiko.SFTPClient(self._channel("sftp"))
        except (paramiko.SSHException, paramiko.SFTPError, EOFError) as error:
            raise CopyFailed(f"{situation}: no sftp server answers there ({_reason(error)})") from None
        try:
            with sftp:
                yield sftp
        except UnicodeError:
            raise CopyFailed(f"{situation}: there is a file in the guest whose name is not UTF-8") from None
        except (paramiko.SSHException, paramiko.SFTPError, EOFError) as error:
            raise Unreachable(f"{situation}: {_reason(error)}") from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise NoSpace(f"{situation}: no space left here") from None
            raise CopyFailed(f"{situation}: {_reason(error)}") from None

    def _channel(self, subsystem: str = "") -> paramiko.Channel:
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise Unreachable(f"{self._where}: the connection is closed")
        try:
            channel = transport.open_session(timeout=_PATIENCE_SECONDS)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable(f"{self._where}: {_reason(error)}") from None
        if subsystem:
            # Silence for so long means that the guest hangs; a transfer is never silent.
            channel.settimeout(_SILENCE_SECONDS)
            channel.invoke_subsystem(subsystem)
        return channel

    @property
    def _where(self) -> str:
        return self._login.address


# $1 folder, $2 temporary file, $3 path, $4 mode, $5 size: a connection that breaks looks like the end of the input.
_WRITE = """set -e
(umask 022; mkdir -p -- "$1")
trap 'rm -f -- "$2"' EXIT
(umask 077; cat > "$2")
[ "$(wc -c < "$2")" -eq "$5" ]
chmod -- "$4" "$2"
mv -fT -- "$2" "$3"
"""


class _Output:
    """Both streams of a command, or their tails where somebody else takes them."""

    def __init__(self, on_output: Callable[[bytes, bool], None] | None) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self._on_output = on_output

    def take(self, channel: paramiko.Channel) -> bool:
        """Take a piece of each stream from the channel's buffers; whether there was one."""
        some = False
        if channel.recv_ready():
            some = self._keep(self.out, channel.recv(_CHUNK), is_error=False)
        if channel.recv_stderr_ready():
            some = self._keep(self.err, channel.recv_stderr(_CHUNK), is_error=True) or some
        return some

    def _keep(self, kept: bytearray, piece: bytes, *, is_error: bool) -> bool:
        kept += piece
        if self._on_output is not None and piece:
            self._on_output(piece, is_error)
            del kept[:-_TAIL]
        return bool(piece)


def _feed(channel: paramiko.Channel, content: bytes) -> None:
    # In a thread: a command that writes before it has read everything would otherwise wait for us while we wait for it.
    # OSError: it ended without reading to the end, which is its right.
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        for start in range(0, len(content), _CHUNK):
            channel.sendall(content[start : start + _CHUNK])
        channel.shutdown_write()


def _connect(login: Login, deadline: float, stop: threading.Event, tcp_seconds: float = _TCP_SECONDS) -> Guest:
    where = f"{login.address} port {login.port}"
    kind, blob = login.host_key.split()[:2]
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    known_as = login.address if login.port == 22 else f"[{login.address}]:{login.port}"
    client.get_host_keys().add(known_as, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(blob)))
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(login.private_key))
    try:
        patience = max(0.05, min(tcp_seconds, deadline - time.monotonic()))
        sock = socket.create_connection((login.address, login.port), timeout=patience)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_SECONDS * 1000)
    except OSError as error:
        raise Unreachable(f"{where}: {_reason(error)}") from None
    with contextlib.ExitStack() as undo, _cut(sock, deadline, stop) as cut:
        undo.callback(sock.close)
        undo.callback(client.close)
        try:
            client.connect(
                login.address,
                login.port,
                login.user,
                pkey=key,
                sock=sock,
                allow_agent=False,
                look_for_keys=False,
                timeout=_PATIENCE_SECONDS,
                banner_timeout=_PATIENCE_SECONDS,
                auth_timeout=_PATIENCE_SECONDS,
                transport_factory=_transport,
            )
        except paramiko.BadHostKeyException as error:
            raise HostKeyMismatch(
                f"{where} answers with the host key {error.key.fingerprint}, which is not this machine's",
                hint="something else has taken its address; nothing was sent to it",
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            # A cut looks like many things, also like a refused login.
            if isinstance(error, paramiko.AuthenticationException) and not cut.is_set():
                raise LoginRefused(f"{where}: {login.user} cannot log in with our key") from None
            raise Unreachable(f"{where}: {'no answer from sshd' if cut.is_set() else _reason(error)}") from None
        transport = client.get_transport()
        if transport is None or cut.is_set():
            raise Unreachable(f"{where}: no answer from sshd")
        transport.set_keepalive(_KEEPALIVE_SECONDS)
        undo.pop_all()
    return Guest(login, client)


def _transport(sock: Any, **options: Any) -> paramiko.Transport:
    transport = paramiko.Transport(sock, **options)
    # paramiko's own 15 s for the key exchange are too few for an emulated guest, and connect() has no parameter for them.
    transport.handshake_timeout = _PATIENCE_SECONDS
    return transport


@contextlib.contextmanager
def _cut(sock: socket.socket, deadline: float, stop: threading.Event) -> Iterator[threading.Event]:
    """Shut `sock` down at the deadline or when `stop` is set, and say so in the event: nothing else wakes paramiko early."""
    done, cut = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(_TICK_SECONDS / 2):
            if stop.is_set() or time.monotonic() >= deadline:
                cut.set()
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield cut
    finally:
        done.set()
        watcher.join()


def _reason(error: BaseException) -> str:
    """An exception of the socket or of paramiko in few words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, EOFError):
        return "the connection was closed"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip() or type(error).__name__


def wait_ssh(login: Login, *, deadline: float, stop: threading.Event, on_wait: Callable[[str], None] | None = None) -> Guest:
    """Come in as soon as the guest lets us. `deadline` is a value of time.monotonic(); `on_wait` hears each new reason.

    Raises NotReady with the last reason when the time is up, WaitInterrupted when `stop` is set, HostKeyMismatch at once.
    A refused login is tried again, but ever more seldom: cloud-init may not have placed the key yet, and OpenSSH 9.8 shuts out
    who fails too often.
    """
    started = time.monotonic()
    pause, last = POLL_SECONDS, ""
    while True:
        try:
            return _connect(login, deadline, stop, PROBE_SECONDS)
        except HostKeyMismatch:
            raise
        except GuestFailed as error:
            reason = error.message
            pause = min(8.0, max(1.0, pause * 2)) if isinstance(error, LoginRefused) else POLL_SECONDS
        if stop.is_set():
            raise WaitInterrupted(f"{login.address}: waiting for ssh was interrupted")
        if reason != last and on_wait is not None:
            on_wait(reason)
        last = reason
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotReady(f"no ssh after {time.monotonic() - started:.0f} s: {reason}")
        stop.wait(min(pause, left))
