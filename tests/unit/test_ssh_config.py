"""ssh_config.py, judged by OpenSSH's client and used against a real sshd."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from pocketcloud.errors import Refused
from pocketcloud.keys import new_key, write_private
from pocketcloud.ssh_config import SshHost, command_line, interactive_argv, known_hosts_line, ssh_config
from tests.sshd import SSHD, Sshd

needs_sshd = pytest.mark.skipif(not SSHD, reason="openssh-server is not installed (packages.tsv: test:sshd)")


def host(folder: Path, alias: str = "demo.web") -> SshHost:
    return SshHost(alias, "192.0.2.7", "root", 2222, folder / "a key", folder / "known hosts")


def as_ssh_sees_it(config: Path, alias: str) -> dict[str, list[str]]:
    out = subprocess.run(["ssh", "-G", "-F", config, alias], check=True, capture_output=True, text=True).stdout
    seen: dict[str, list[str]] = {}
    for line in out.splitlines():
        key, _, value = line.partition(" ")
        seen.setdefault(key, []).append(value)
    return seen


@pytest.mark.parametrize("folder", ["plain", "two words", "100%h %%", "ünï", "tilde~", "$HOME", "it's", "#hash"])
def test_ssh_reads_what_we_write(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    config = place / "config"
    config.write_text(ssh_config([host(place, "other"), host(place)]))
    seen = as_ssh_sees_it(config, "demo.web")
    assert seen["hostname"] == ["192.0.2.7"]
    assert seen["port"] == ["2222"]
    assert seen["user"] == ["root"]
    assert seen["hostkeyalias"] == ["demo.web"]
    assert seen["stricthostkeychecking"] in (["true"], ["yes"])
    # `ssh -G` prints the option before its % sequences are resolved.
    assert seen["identityfile"][0] == str(place / "a key").replace("%", "%%")
    assert seen["identitiesonly"] == ["yes"]
    assert "a key" not in as_ssh_sees_it(config, "stranger").get("identityfile", [""])[0]


@pytest.mark.parametrize("folder", ['quo"te', "back\\slash", "new\nline", "${HOME}"])
def test_what_ssh_would_read_differently_is_refused(folder: str) -> None:
    with pytest.raises(Refused, match="cannot name"):
        ssh_config([host(Path("/kits") / folder)])
    with pytest.raises(Refused):
        ssh_config([host(Path("relative"))])


@pytest.mark.parametrize("alias", ["", "-oProxyCommand=evil", "a b", "a\nHost *", "a*", "a,b", "!a", "ü"])
def test_an_alias_is_nothing_else(alias: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alias"):
        host(tmp_path, alias)
    with pytest.raises(ValueError, match="alias"):
        interactive_argv(tmp_path, alias)
    with pytest.raises(ValueError, match="alias"):
        known_hosts_line(alias, "192.0.2.7", new_key("x").public)


def test_address_user_and_port_are_checked(tmp_path: Path) -> None:
    for address, user, port in (("evil host", "root", 22), ("192.0.2.7", "-l", 22), ("192.0.2.7", "root", 0)):
        with pytest.raises(ValueError, match=r"address|user|port"):
            SshHost("web", address, user, port, tmp_path / "k", tmp_path / "h")


def test_known_hosts_lines_are_found_by_both_names(tmp_path: Path) -> None:
    key = new_key("a comment")
    (tmp_path / "known").write_text(known_hosts_line("demo.web", "192.0.2.7", key.public))
    for name in ("demo.web", "192.0.2.7"):
        argv = ["ssh-keygen", "-F", name, "-f", str(tmp_path / "known")]
        assert key.bare in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert "comment" not in (tmp_path / "known").read_text()


def test_several_words_stay_words_and_one_is_shell_text() -> None:
    assert command_line(["ls | wc -l"]) == "ls | wc -l"
    assert command_line(["echo", "two words", "a;b"]) == "echo 'two words' 'a;b'"


@pytest.fixture
def server(tmp_path: Path) -> Sshd:
    return Sshd(tmp_path / "the server")


def configured(server: Sshd, folder: Path, host_key: str) -> Path:
    """A configuration for `server` under the alias demo.web."""
    place = folder / "100% a kit"
    place.mkdir()
    write_private(place / "id", server.client)
    (place / "known").write_text(known_hosts_line("demo.web", "127.0.0.1", host_key))
    config = place / "config"
    config.write_text(
        ssh_config([SshHost("demo.web", "127.0.0.1", getpass.getuser(), server.port, place / "id", place / "known")])
    )
    return config


def ask(config: Path, *command: str) -> subprocess.CompletedProcess[str]:
    argv = interactive_argv(config, "demo.web", command)
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@needs_sshd
def test_openssh_comes_in_with_it_and_passes_words_and_codes_on(server: Sshd, tmp_path: Path) -> None:
    config = configured(server, tmp_path, server.host.public)
    with server:
        done = ask(config, "printf", "%s|", "two words", "$HOME", "it's")
        assert done.stdout == "two words|$HOME|it's|", done.stderr
        assert ask(config, "exit 42").returncode == 42
        assert ask(config, "test -t 1").returncode in (0, 1)


@needs_sshd
def test_openssh_refuses_another_host_key(server: Sshd, tmp_path: Path) -> None:
    config = configured(server, tmp_path, new_key("other").public)
    with server:
        done = ask(config, "true")
    assert done.returncode == 255
    assert "verification failed" in done.stderr
