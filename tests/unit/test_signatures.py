"""Lists of sums in the forms that are published, and signatures, made and checked by the real GnuPG."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.downloads import fetch
from pocketcloud.downloads.signatures import check_clearsigned, check_detached
from pocketcloud.downloads.sums import NoSum, Sum, entries, sum_of
from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.base import Download
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.system import Completed, run
from tests.signers import Signers, signers

A, B = "a" * 64, "b" * 64
LONG = "c" * 128
FILE = "https://example.com/os/13/disk.qcow2"
LIST = "https://example.com/os/13/SUMS"


@pytest.fixture(scope="module")
def gnupg() -> Iterator[Signers]:
    with signers() as home:
        home.key("good")
        home.key("other")
        home.key("expired", days="20d", at="20200101T000000")
        home.key("revoked")
        yield home


@pytest.mark.parametrize(
    "text",
    [
        f"{A}  disk.qcow2\n",
        f"{B}  other\n{A} *disk.qcow2\n",
        f"{A}  ./disk.qcow2\n",
        f"# disk.qcow2: 123 bytes\nSHA256 (disk.qcow2) = {A}\n",
        f"SHA256(disk.qcow2)= {A.upper()}\n",
        f"MD5 (disk.qcow2) = {'0' * 32}\nSHA1 (disk.qcow2) = {'0' * 40}\nSHA256 (disk.qcow2) = {A}\n",
        f"{A}  images/disk.qcow2\r\n",
        f"{B}  old/disk.qcow2\n{A}  disk.qcow2\n",
    ],
)
def test_the_forms_of_lists(text: str) -> None:
    assert sum_of(text, FILE, LIST) == Sum("sha256", A)


def test_the_stronger_sum_counts() -> None:
    assert sum_of(f"SHA256 (disk.qcow2) = {A}\nSHA512 (disk.qcow2) = {LONG}\n", FILE, LIST) == Sum("sha512", LONG)


def test_a_file_deeper_in_the_tree_is_told_from_its_namesakes() -> None:
    text = f"{B}  ./netboot/gtk/linux\n{A}  ./netboot/text/linux\n"
    assert sum_of(text, "https://example.com/images/netboot/text/linux", "https://example.com/images/SHA256SUMS").hexadecimal == A


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no SHA-256"),
        (f"{'0' * 32}  disk.qcow2\n", "no SHA-256"),
        (f"{A}  other\n", "is not in it"),
        (f"SHA256 (disk.qcow2) = {LONG}\n", "no SHA-256"),
        (f"{A}  x/disk.qcow2\n{B}  y/disk.qcow2\n", "2 different sums"),
        (f"{A}  disk.qcow2\n{B}  disk.qcow2\n", "2 different sums"),
    ],
)
def test_lists_that_do_not_help(text: str, why: str) -> None:
    with pytest.raises(NoSum, match=why):
        sum_of(text, FILE, LIST)


@given(st.text(max_size=300))
def test_any_text_is_a_list_or_none(text: str) -> None:
    for _, found in entries(text):
        assert len(found.hexadecimal) in (64, 128)


TEXT = f"{A}  disk.qcow2\n".encode()


@pytest.mark.parametrize("armored", [False, True])
def test_a_good_signature(gnupg: Signers, tmp_path: Path, armored: bool) -> None:
    keys = gnupg.ring(tmp_path / "keys", "other", "good", ascii_armor=armored)
    signer = check_detached(TEXT, gnupg.detached("good", TEXT, ascii_armor=armored), keys, "the list")
    assert len(signer) == 40
    assert check_clearsigned(gnupg.clearsigned("good", TEXT), keys, "the list") == (signer, TEXT)


def test_keys_published_one_after_the_other(gnupg: Signers, tmp_path: Path) -> None:
    keys = tmp_path / "keys.asc"
    keys.write_bytes(b"".join(gnupg.ring(tmp_path / "one", name, ascii_armor=True).read_bytes() for name in ("other", "good")))
    assert check_detached(TEXT, gnupg.detached("good", TEXT), keys, "the list")


def test_what_is_not_signed_of_a_text_is_not_believed(gnupg: Signers, tmp_path: Path) -> None:
    keys = gnupg.ring(tmp_path / "keys", "good")
    message = f"{B}  disk.qcow2\n".encode() + gnupg.clearsigned("good", TEXT) + f"{B}  disk.qcow2\n".encode()
    assert check_clearsigned(message, keys, "the list")[1] == TEXT
    twice = gnupg.clearsigned("good", TEXT) + gnupg.clearsigned("other", f"{B}  disk.qcow2\n".encode())
    with pytest.raises(Refused):
        check_clearsigned(twice, keys, "the list")


def test_signatures_that_do_not_count(gnupg: Signers, tmp_path: Path) -> None:
    def refused(content: bytes, signature: bytes, keys: Path) -> str:
        with pytest.raises(Refused) as caught:
            check_detached(content, signature, keys, "the list")
        assert str(keys) in caught.value.hint
        return caught.value.message

    keys = gnupg.ring(tmp_path / "keys", "good", "expired")
    assert "not of this content" in refused(TEXT + b"x", gnupg.detached("good", TEXT), keys)
    assert "not among those that may sign" in refused(TEXT, gnupg.detached("other", TEXT), keys)
    assert "has expired" in refused(TEXT, gnupg.detached("expired", TEXT, at="20200102T000000"), keys)
    assert "no OpenPGP signature" in refused(TEXT, b"<html>", keys)
    assert "no OpenPGP signature" in refused(TEXT, b"", keys)
    signature = gnupg.detached("revoked", TEXT)
    gnupg.revoke("revoked")
    assert "is revoked" in refused(TEXT, signature, gnupg.ring(tmp_path / "revoked", "revoked"))


def test_one_good_signature_beside_a_stranger_s_is_enough(gnupg: Signers, tmp_path: Path) -> None:
    keys = gnupg.ring(tmp_path / "keys", "good")
    both = gnupg.detached("other", TEXT) + gnupg.detached("good", TEXT)
    assert check_detached(TEXT, both, keys, "the list")
    with pytest.raises(Refused, match="not of this content"):
        check_detached(TEXT, gnupg.detached("good", TEXT) + gnupg.detached("good", b"else"), keys, "the list")


def test_a_large_file_on_a_slow_stick_is_given_the_time_that_reading_it_takes(gnupg: Signers, tmp_path: Path) -> None:
    """A tool that takes longer than it was given is ended: what was given is asked of the one that is started."""
    given: list[float | None] = []

    def watching(argv: Sequence[str | Path], *, timeout: float | None = None, **how: Any) -> Completed:
        if argv[0] == "gpgv":
            given.append(timeout)
            os.truncate(large, 0)  # its content is of no interest here
        return run(argv, timeout=timeout, **how)

    large = tmp_path / "disk.iso"
    large.touch()
    os.truncate(large, 5 * GIB)
    keys = gnupg.ring(tmp_path / "keys", "good")
    check_detached(large, gnupg.detached("good", b""), keys, "the disc", watching)
    assert given[0] is not None
    assert given[0] > 5 * GIB / (10 * MIB)
    check_detached(b"", gnupg.detached("good", b""), keys, "the list", watching)
    assert given[1] == 120


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="keys that may sign it cannot be read"):
        check_detached(TEXT, b"", tmp_path / "none", "the list")


def test_a_file_of_this_host_by_a_signed_list(gnupg: Signers, tmp_path: Path) -> None:
    disk, sums, keys = tmp_path / "disk.qcow2", tmp_path / "CHECKSUM", gnupg.ring(tmp_path / "keys", "good")
    disk.write_bytes(b"content")
    line = f"SHA256 (disk.qcow2) = {hashlib.sha256(b'content').hexdigest()}\n".encode()
    sums.write_bytes(gnupg.clearsigned("good", line))
    found = fetch(Download(file=str(disk), sums=str(sums), keyring=str(keys)), tmp_path)
    assert (found.path, len(found.signer)) == (disk, 40)
    both = Download(file=str(disk), sums=str(sums), signature=str(sums), keyring=str(keys))
    assert fetch(both, tmp_path) == found
    sums.write_bytes(line)
    with pytest.raises(Refused, match="is not signed"):
        fetch(Download(file=str(disk), sums=str(sums), keyring=str(keys)), tmp_path)
    (tmp_path / "CHECKSUM.sig").write_bytes(gnupg.detached("good", line))
    signed = Download(file=str(disk), sums=str(sums), signature=f"{sums}.sig", keyring=str(keys))
    assert fetch(signed, tmp_path) == found
    disk.write_bytes(b"another")
    with pytest.raises(Refused, match="not the right file"):
        fetch(signed, tmp_path)
