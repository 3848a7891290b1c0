"""keys.py, checked by OpenSSH's own ssh-keygen where it speaks of formats."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from pocketcloud.errors import NotFound, Refused
from pocketcloud.keys import KeyPair, invoking_home, kit_key, new_key, read_key, read_public, user_public_keys, write_private


def keygen(*args: str | Path) -> str:
    return subprocess.run(["ssh-keygen", *args], check=True, capture_output=True, text=True).stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_openssh_reads_our_keys(tmp_path: Path) -> None:
    pair = new_key("demo web")
    write_private(tmp_path / "key", pair)
    assert keygen("-y", "-f", tmp_path / "key").split()[:2] == pair.bare.split()
    assert keygen("-l", "-f", tmp_path / "key.pub").split()[2:] == ["demo", "web", "(ED25519)"]
    assert (mode(tmp_path / "key"), mode(tmp_path / "key.pub")) == (0o600, 0o644)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]


def test_every_key_is_another_and_shows_no_secret() -> None:
    one, two = new_key("x"), new_key("x")
    assert one.bare != two.bare
    assert "PRIVATE" not in repr(one)


def test_a_comment_stays_in_its_line() -> None:
    assert new_key("a\nssh-rsa evil\x1b[0m ü").public.split(" ", 2)[2] == "a_ssh-rsa evil_[0m _"
    assert new_key("").public.count(" ") == 1


def test_a_key_is_read_back(tmp_path: Path) -> None:
    pair = new_key("here")
    write_private(tmp_path / "key", pair)
    assert read_key(tmp_path / "key", "here").public == pair.public
    assert read_public(tmp_path / "key") == pair.public


def test_a_key_of_openssh_is_read(tmp_path: Path) -> None:
    keygen("-q", "-t", "ed25519", "-N", "", "-C", "theirs", "-f", tmp_path / "key")
    assert read_key(tmp_path / "key", "theirs").public == (tmp_path / "key.pub").read_text().strip()


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    keygen("-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "ecdsa")
    keygen("-q", "-t", "ed25519", "-N", "passphrase", "-f", tmp_path / "locked")
    for name in ("text", "ecdsa", "locked"):
        with pytest.raises(Refused, match=name):
            read_key(tmp_path / name, "")
    with pytest.raises(NotFound, match="none"):
        read_key(tmp_path / "none", "")
    with pytest.raises(NotFound):
        read_public(tmp_path / "none")
    (tmp_path / "text.pub").write_text("nothing")
    with pytest.raises(Refused):
        read_public(tmp_path / "text")


def test_the_kit_keeps_one_key(tmp_path: Path) -> None:
    first = kit_key(tmp_path)
    assert kit_key(tmp_path) == first
    assert mode(tmp_path / "keys" / "id_ed25519") == 0o600
    assert read_public(tmp_path / "keys" / "id_ed25519") == first.public
    assert sorted(os.listdir(tmp_path / "keys")) == ["id_ed25519", "id_ed25519.pub"]  # noqa: PTH208 - names, hidden ones too


def test_of_many_at_once_one_makes_the_key_of_the_kit(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    got: list[KeyPair] = []

    def ask() -> None:
        barrier.wait()
        got.append(kit_key(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({pair.private for pair in got}) == 1
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_a_kit_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be made"):
        kit_key(tmp_path / "none")


def test_the_users_keys_are_those_that_sshd_would_take(tmp_path: Path) -> None:
    folder = tmp_path / ".ssh"
    folder.mkdir()
    for kind in ("ed25519", "ecdsa", "rsa"):
        keygen("-q", "-t", kind, "-N", "", "-C", f"jürgen@{kind}", "-f", folder / f"id_{kind}")
    good = (folder / "id_rsa.pub").read_text().split()
    (folder / "id_text.pub").write_text("hello there\n")
    (folder / "id_empty.pub").write_text("")
    (folder / "id_false.pub").write_text(f"ssh-ed25519 {good[1]} says another type than it is\n")
    (folder / "id_command.pub").write_text(f'command="evil" {" ".join(good)}\n')
    (folder / "id_private.pub").write_bytes((folder / "id_rsa").read_bytes())
    (folder / "id_folder.pub").mkdir()
    (folder / "id_copy.pub").write_text((folder / "id_rsa.pub").read_text())
    (folder / "other.pub").write_text((folder / "id_ed25519.pub").read_text())
    os.mkfifo(folder / "id_pipe.pub")
    keys = user_public_keys(tmp_path)
    assert [key.split()[0] for key in keys] == ["ssh-rsa", "ecdsa-sha2-nistp256", "ssh-ed25519"]
    assert [key.split()[2] for key in keys] == ["j_rgen@rsa", "j_rgen@ecdsa", "j_rgen@ed25519"]


def test_a_user_without_keys_has_none(tmp_path: Path) -> None:
    assert user_public_keys(tmp_path) == ()


def test_the_home_is_that_of_the_person_at_the_keyboard() -> None:
    homes = {"ada": Path("/home/ada")}
    assert invoking_home({"SUDO_USER": "ada", "HOME": "/root"}, homes.get) == Path("/home/ada")
    assert invoking_home({"SUDO_USER": "gone", "HOME": "/root"}, homes.get) == Path("/root")
    assert invoking_home({"HOME": "/home/bob"}, homes.get) == Path("/home/bob")
    own = pwd.getpwuid(os.getuid())
    assert invoking_home({}) == Path(own.pw_dir)
    assert invoking_home({"SUDO_USER": own.pw_name, "HOME": "/nowhere"}) == Path(own.pw_dir)
