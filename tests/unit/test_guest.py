"""guest.py against a real sshd on a loopback port."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from pocketcloud.errors import GuestFailed, NotReady
from pocketcloud.guest import (
    CopyFailed,
    Guest,
    HostKeyMismatch,
    Login,
    LoginRefused,
    Unreachable,
    WaitInterrupted,
    wait_ssh,
)
from pocketcloud.keys import new_key
from tests.sshd import SSHD, Sshd, free_port

pytestmark = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed (packages.tsv: test:sshd)")

ODD_NAMES = ("two words", 'it\'s "quoted"', "new\nline", "ünïcödé 名", "-rf", "$HOME `id`", "*", "back\\slash", "~")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def guest(sshd: Sshd) -> Iterator[Guest]:
    with Guest.connect(sshd.login, timeout=30) as connection:
        yield connection


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says a word, as a guest's does whose sshd is stuck."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


# --- coming in ---


def test_the_right_key_comes_in(sshd: Sshd) -> None:
    with Guest.connect(sshd.login, timeout=30) as guest:
        assert guest.run("echo hello").out == b"hello\n"


def test_a_wrong_host_key_is_a_mismatch_and_nothing_is_tried(sshd: Sshd) -> None:
    with pytest.raises(HostKeyMismatch, match="not this machine's"):
        Guest.connect(sshd.login_with(host=new_key("other")), timeout=30)


def test_waiting_does_not_retry_a_wrong_host_key(sshd: Sshd) -> None:
    heard: list[str] = []
    before = sshd.log().count("Connection from") + sshd.log().count("Connection closed")
    with pytest.raises(HostKeyMismatch):
        wait_ssh(sshd.login_with(host=new_key("other")), deadline=soon(), stop=threading.Event(), on_wait=heard.append)
    assert heard == []
    assert sshd.log().count("Connection from") + sshd.log().count("Connection closed") <= before + 1


def test_a_key_that_is_not_authorized_is_a_refused_login(sshd: Sshd) -> None:
    with pytest.raises(LoginRefused, match="cannot log in"):
        Guest.connect(sshd.login_with(client=new_key("stranger")), timeout=30)


def test_a_refused_connection_is_unreachable_as_ssh_has_it() -> None:
    key = new_key("any")
    with pytest.raises(Unreachable, match="refused") as caught:
        Guest.connect(Login("127.0.0.1", key.bare, key.private, port=free_port()), timeout=5)
    assert isinstance(caught.value, GuestFailed)
    assert caught.value.exit_code == 255


def test_a_silent_server_is_given_up_at_the_timeout(silent_port: int) -> None:
    key = new_key("any")
    started = time.monotonic()
    with pytest.raises(Unreachable, match="no answer"):
        Guest.connect(Login("127.0.0.1", key.bare, key.private, port=silent_port), timeout=0.5)
    assert time.monotonic() - started < 5


def test_no_secret_is_shown() -> None:
    key = new_key("any")
    assert "PRIVATE" not in repr(Login("127.0.0.1", key.bare, key.private))


# --- waiting ---


def test_an_sshd_that_comes_up_late_is_waited_for(tmp_path: Path) -> None:
    server = Sshd(tmp_path / "late")
    heard: list[str] = []

    def on_wait(reason: str) -> None:
        heard.append(reason)
        if len(heard) == 1:
            server.start()

    try:
        with wait_ssh(server.login, deadline=soon(), stop=threading.Event(), on_wait=on_wait) as guest:
            assert guest.run("true").code == 0
    finally:
        server.stop()
    assert "refused" in heard[0]


def test_a_key_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """cloud-init may place the key when sshd is up already."""
    with Sshd(tmp_path / "late") as server:
        authorized = server.folder / "authorized"
        keys = authorized.read_text()
        authorized.write_text("")
        heard: list[str] = []

        def on_wait(reason: str) -> None:
            heard.append(reason)
            authorized.write_text(keys)

        wait_ssh(server.login, deadline=soon(), stop=threading.Event(), on_wait=on_wait).close()
    assert "cannot log in" in heard[0]


def test_waiting_ends_at_the_deadline_with_the_last_reason() -> None:
    key = new_key("any")
    with pytest.raises(NotReady, match="refused") as caught:
        wait_ssh(Login("127.0.0.1", key.bare, key.private, port=free_port()), deadline=soon(0.5), stop=threading.Event())
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_stop_ends_waiting_at_once(answer: str, silent_port: int) -> None:
    key = new_key("any")
    port = silent_port if answer == "silent" else free_port()
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(WaitInterrupted):
        wait_ssh(Login("127.0.0.1", key.bare, key.private, port=port), deadline=soon(60), stop=stop)
    timer.join()
    assert time.monotonic() - started < 5


# --- commands ---


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_exit_codes_are_passed_on(guest: Guest, code: int) -> None:
    assert guest.run(f"exit {code}").code == code
    assert guest.run(f"sh -c 'exit {code}'").code == code


@pytest.mark.parametrize("command", ["true \\", "true # all is well", "true;", "false || true", "cat <<'X'\nhi\nX"])
def test_text_that_ends_oddly_is_run_as_it_is(guest: Guest, command: str) -> None:
    assert guest.run(command).code == 0


def test_a_signal_is_128_and_its_number(guest: Guest) -> None:
    assert guest.run("sh -c 'kill -9 $$'").code == 137
    assert guest.run("sh -c 'kill -SEGV $$'").code == 139


def test_a_signal_that_ends_the_shell_itself_is_no_success(guest: Guest) -> None:
    assert guest.run("kill -9 $$").code == -1


def test_much_on_both_streams_does_not_hang(guest: Guest) -> None:
    done = guest.run("head -c 5242880 /dev/zero & head -c 5242880 /dev/zero | tr '\\0' e >&2; wait", timeout=120)
    assert done.code == 0
    assert done.out == bytes(5 << 20)
    assert done.err == b"e" * (5 << 20)


def test_input_is_binary_and_may_be_larger_than_any_buffer(guest: Guest) -> None:
    content = os.urandom(1 << 20) * 6
    done = guest.run("cat", stdin=content, timeout=120)
    assert done.out == content


def test_a_command_that_does_not_read_its_input_ends_all_the_same(guest: Guest) -> None:
    assert guest.run("exit 3", stdin=bytes(8 << 20), timeout=60).code == 3


def test_without_input_there_is_its_end(guest: Guest) -> None:
    assert guest.run("cat", timeout=30).out == b""


def test_output_is_told_as_it_comes_and_the_tail_is_kept(guest: Guest) -> None:
    first = threading.Event()
    pieces: list[tuple[bytes, bool]] = []

    def on_output(piece: bytes, is_error: bool) -> None:
        pieces.append((piece, is_error))
        first.set()

    done = guest.run("echo one; echo two >&2; head -c 300000 /dev/zero; echo last", on_output=on_output)
    assert first.is_set()
    assert b"".join(piece for piece, is_error in pieces if not is_error) == b"one\n" + bytes(300000) + b"last\n"
    assert b"".join(piece for piece, is_error in pieces if is_error) == b"two\n"
    assert done.out.endswith(b"last\n")
    assert len(done.out) == 64 * 1024


def test_a_command_that_takes_too_long_is_not_ready(guest: Guest) -> None:
    started = time.monotonic()
    with pytest.raises(NotReady, match="did not end"):
        guest.run("exec sleep 5", timeout=0.5)
    assert time.monotonic() - started < 4


def test_an_endless_stream_does_not_outlive_its_time(guest: Guest) -> None:
    with pytest.raises(NotReady):
        guest.run("yes", timeout=1, on_output=lambda _piece, _is_error: None)


def test_stop_ends_a_command(guest: Guest) -> None:
    stop = threading.Event()
    with pytest.raises(WaitInterrupted):
        guest.run("echo go; exec sleep 5", on_output=lambda _piece, _is_error: stop.set(), stop=stop)


def test_a_channel_is_never_asked_for_its_pipe(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    # A piece of output that meets the closing of that pipe ends the whole connection, once in some hundred times (paramiko
    # issues 1700 and 2271): too rare for a test to wait for.
    def fileno(_channel: paramiko.Channel) -> int:
        raise AssertionError("paramiko.Channel.fileno() was called")

    monkeypatch.setattr(paramiko.Channel, "fileno", fileno)
    assert guest.run("sleep 0.1; echo alive; echo worse >&2").out == b"alive\n"
    with pytest.raises(NotReady):
        guest.run("yes", timeout=0.3, on_output=lambda _piece, _is_error: None)


def test_a_background_process_does_not_hold_up_the_answer(guest: Guest) -> None:
    started = time.monotonic()
    number = int(guest.run("sleep 60 & echo $!").out)
    assert time.monotonic() - started < 30
    assert guest.run(f"kill {number}").code == 0


def test_a_broken_connection_is_unreachable(sshd: Sshd) -> None:
    with Guest.connect(sshd.login, timeout=30) as guest, pytest.raises(Unreachable, match="broke"):
        guest.run("kill -9 $PPID; sleep 5")
    with pytest.raises(Unreachable, match="closed"):
        guest.run("true")


def test_several_threads_share_a_connection(guest: Guest) -> None:
    answers: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda number=number: answers.update({number: guest.run(f"echo {number}").out}))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {number: f"{number}\n".encode() for number in range(6)}


# --- files ---


@pytest.mark.parametrize("name", ODD_NAMES)
def test_write_takes_any_name(guest: Guest, tmp_path: Path, name: str) -> None:
    content = bytes(range(256)) * 3
    path = tmp_path / "folder of" / name / name
    guest.write(str(path), content, 0o640)
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert os.listdir(path.parent) == [name]  # noqa: PTH208 - names as the system has them


def test_write_replaces_whole_files_and_links(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to("real")
    guest.write(str(tmp_path / "link"), b"new", 0o644)
    assert (tmp_path / "real").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


def test_write_says_what_hinders_it_and_leaves_nothing(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CopyFailed, match="folder cannot be written"):
        guest.write(str(tmp_path / "folder"), b"x", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_empty_and_a_large_file_can_be_written(guest: Guest, tmp_path: Path) -> None:
    guest.write(str(tmp_path / "empty"), b"", 0o600)
    guest.write(str(tmp_path / "large"), bytes(4 << 20), 0o600)
    assert (tmp_path / "empty").read_bytes() == b""
    assert (tmp_path / "large").stat().st_size == 4 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with everything that copying can meet."""
    top = tmp_path / "the tree"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    for name in ODD_NAMES:
        (top / "deep" / name).write_text(name)
    (top / "deep" / "er" / "large").write_bytes(os.urandom(1 << 20) + b"end")
    (top / "script").write_text("#!/bin/sh\n")
    (top / "script").chmod(0o750)
    (top / "secret").write_text("s")
    (top / "secret").chmod(0o600)
    (top / "inside").symlink_to("deep/er")
    (top / "outside").symlink_to("/etc")
    (top / "dangling").symlink_to("../no where")
    (top / "deep").chmod(0o711)
    return top


def picture(top: Path) -> dict[str, tuple[str, int, bytes | str]]:
    """What is in a tree: kind, mode and content of each path."""
    seen: dict[str, tuple[str, int, bytes | str]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        name, mode = str(path.relative_to(top)), path.lstat().st_mode
        if path.is_symlink():
            seen[name] = ("link", 0, str(path.readlink()))
        elif path.is_dir():
            seen[name] = ("folder", stat.S_IMODE(mode), "")
        else:
            seen[name] = ("file", stat.S_IMODE(mode), path.read_bytes())
    return seen


def test_a_tree_comes_over_and_back_whole(guest: Guest, tree: Path, tmp_path: Path) -> None:
    guest.put(tree, str(tmp_path / "there"))
    assert picture(tmp_path / "there") == picture(tree)
    guest.get(str(tmp_path / "there"), tmp_path / "back")
    assert picture(tmp_path / "back") == picture(tree)


def test_a_copy_over_an_older_one_replaces_it(guest: Guest, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "into").mkdir()
    for _ in range(2):
        guest.put(tree, str(tmp_path / "there"))
        guest.get(str(tmp_path / "there" / tree.name / "secret"), tmp_path / "one")
        guest.get(str(tmp_path / "there" / tree.name), tmp_path / "into")
    assert picture(tmp_path / "there" / tree.name) == picture(tree)
    assert picture(tmp_path / "into" / tree.name) == picture(tree)
    assert (tmp_path / "one").read_text() == "s"


def test_a_folder_as_target_is_copied_into(guest: Guest, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    guest.put(tree / "script", str(tmp_path / "there"))
    guest.put(tree / "script", str(tmp_path / "there") + "/")
    assert (tmp_path / "there" / "script").read_text() == "#!/bin/sh\n"
    guest.get(str(tmp_path / "there" / "script"), tmp_path)
    assert stat.S_IMODE((tmp_path / "script").stat().st_mode) == 0o750


def test_what_cannot_be_copied_is_named_and_the_rest_is_there(guest: Guest, tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(CopyFailed, match=r"neither file, folder nor link: .*pipe"):
        guest.put(tree, str(tmp_path / "there"))
    assert (tmp_path / "there" / "script").exists()
    with pytest.raises(CopyFailed, match=r"neither file, folder nor link: .*pipe"):
        guest.get(str(tree), tmp_path / "back")
    assert (tmp_path / "back" / "script").exists()


def test_missing_files_are_named(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(CopyFailed, match=r"none: No such file"):
        guest.get(str(tmp_path / "none"), tmp_path / "x")
    with pytest.raises(CopyFailed, match=r"none.*No such file"):
        guest.put(tmp_path / "none", str(tmp_path / "x"))
    (tmp_path / "file").write_text("f")
    with pytest.raises(CopyFailed, match="No such file"):
        guest.put(tmp_path / "file", str(tmp_path / "no folder" / "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_set_uid_does_not_come_out_of_a_guest(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("t")
    (tmp_path / "tool").chmod(0o4755)
    guest.get(str(tmp_path / "tool"), tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o755


def test_a_link_from_an_earlier_copy_is_not_followed(guest: Guest, tmp_path: Path) -> None:
    """First the guest's `a` is a link that leads out, then a folder: its files must not follow the link we made."""
    (tmp_path / "there").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "there" / "a").symlink_to(tmp_path / "victim")
    guest.get(str(tmp_path / "there"), tmp_path / "back")
    assert (tmp_path / "back" / "there" / "a").is_symlink()
    (tmp_path / "there" / "a").unlink()
    (tmp_path / "there" / "a").mkdir()
    (tmp_path / "there" / "a" / "evil").write_text("evil")
    with pytest.raises(CopyFailed, match="exists"):
        guest.get(str(tmp_path / "there"), tmp_path / "back")
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_guest_without_sftp_is_told(tmp_path: Path) -> None:
    with Sshd(tmp_path / "bare", sftp=False) as server, Guest.connect(server.login, timeout=30) as guest:
        with pytest.raises(CopyFailed, match="no sftp server"):
            guest.get("/etc/hostname", tmp_path / "x")
        guest.write(str(tmp_path / "y"), b"written without it", 0o644)
    assert (tmp_path / "y").read_bytes() == b"written without it"


# --- a guest that lies ---


class _Doors(paramiko.ServerInterface):
    """Lets everybody in."""

    def check_auth_publickey(self, _username: str, _key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey"

    def check_channel_request(self, _kind: str, _chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED


class _Liar(paramiko.SFTPServerInterface):
    """Has one folder whose only file has a name that climbs out."""

    def stat(self, _path: str) -> paramiko.SFTPAttributes | int:
        return paramiko.SFTPAttributes.from_stat(os.stat("/"))  # noqa: PTH116 - a stat_result, as paramiko wants it

    def list_folder(self, _path: str) -> list[paramiko.SFTPAttributes] | int:
        return [paramiko.SFTPAttributes.from_stat(os.stat("/etc/passwd"), "../evil")]  # noqa: PTH116 - as above


def test_a_name_that_climbs_out_is_refused(tmp_path: Path) -> None:
    host = new_key("host")
    (tmp_path / "key").write_text(host.private)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            transport = paramiko.Transport(server.accept()[0])
            transport.add_server_key(paramiko.Ed25519Key(filename=str(tmp_path / "key")))
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Liar)
            transport.start_server(server=_Doors())
            transport.join(30)

        thread = threading.Thread(target=serve)
        thread.start()
        login = Login("127.0.0.1", host.bare, new_key("me").private, port=server.getsockname()[1])
        with Guest.connect(login, timeout=30) as guest, pytest.raises(CopyFailed, match="not a file's name"):
            guest.get("/folder", tmp_path / "back")
        thread.join(30)
    assert not (tmp_path / "evil").exists()
