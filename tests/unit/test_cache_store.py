"""The store of the cache: addresses become keys, never paths; contents are known by their sums; collections are whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcloud.bases.mirror import over_http
from pocketcloud.cache.addresses import checked, key_of, keyed, masked
from pocketcloud.cache.store import Store, id_of
from pocketcloud.errors import Refused, UsageError
from pocketcloud.model.base import Arch
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish
from pocketcloud.model.names import Name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.make()
    return made


def put(store: Store, content: bytes, name: str = "new") -> Stored:
    path = store.folder / "work" / name
    path.write_bytes(content)
    return store.adopt(path)


def collection(**files: Stored) -> Collection:
    return Collection(CACHE_SCHEMA, "tests", "2024-01-01T00:00:00+00:00", files={f"h.example/{k}": v for k, v in files.items()})


# -- addresses


def test_http_and_https_mean_the_same_file() -> None:
    assert key_of("https://H.example:443/a%2bb/c") == key_of("http://h.example/a+b/c") == "h.example/a+b/c"
    assert key_of("http://h.example:8080/a?x=1") == "h.example:8080/a?x=1"
    assert over_http("https://h.example/debian") == "http://h.example/debian"
    assert over_http("file:/srv") == "file:/srv"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h.example/x",
        "http://h.example/../x",
        "http://h.example/a/%2e%2e/%2e%2e/etc/passwd",
        "http://h.example/a%00b",
        "http://h.example/a%0d%0aX:b",
        "http:///x",
        "http://ex ample/x",
        "http://h.example/%ff%fe",
        "http://h.example",
    ],
)
def test_what_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        checked(url)


def test_a_password_is_refused_and_never_shown() -> None:
    with pytest.raises(UsageError) as caught:
        checked("https://me:topsecret@h.example/x")
    assert "topsecret" not in caught.value.message + caught.value.hint
    assert "password" in caught.value.message
    assert masked("http://me:topsecret@h.example/x\nsecond") == "http://***@h.example/x?second"
    assert "topsecret" not in masked("http://me:topsecret@[broken/x")


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=300)
def test_a_key_has_no_way_up(host: str, path: str) -> None:
    try:
        key = keyed(host, path)
    except ValueError:
        return
    assert not {"..", "."} & set(key.split("/"))
    assert key.isprintable() or not any(ord(c) < 32 for c in key)
    assert not key.startswith("/")


# -- contents


def test_a_content_is_named_by_its_sum(store: Store) -> None:
    stored = put(store, b"hello")
    assert stored == Stored(hashlib.sha256(b"hello").hexdigest(), 5)
    assert store.path(stored.sha256).stat().st_mode & 0o777 == 0o644
    assert store.has(stored)
    assert store.is_whole(stored)
    assert put(store, b"hello") == stored
    assert list((store.folder / "work").iterdir()) == []


def test_a_damaged_or_cut_content_is_found(store: Store) -> None:
    whole, flipped, cut = put(store, b"a" * 1000), put(store, b"b" * 1000), put(store, b"c" * 1000)
    store.path(flipped.sha256).write_bytes(b"b" * 999 + b"x")
    store.path(cut.sha256).write_bytes(b"c" * 10)
    made = collection(whole=whole, flipped=flipped, cut=cut)
    assert store.missing(made) == ("h.example/cut",)
    assert store.damaged(made) == ("h.example/flipped", "h.example/cut")
    assert store.known(made) == {"h.example/whole": whole}
    assert not store.path(flipped.sha256).exists(), "what is damaged is fetched again"


def test_links_are_neither_taken_in_nor_followed(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"hello")
    link = store.folder / "work/link"
    link.symlink_to(secret)
    with pytest.raises(Refused, match="cannot be taken"):
        store.adopt(link)
    os.mkfifo(store.folder / "work/pipe")
    with pytest.raises(Refused, match="no file"):
        store.adopt(store.folder / "work/pipe")
    stored = put(store, b"hello")
    store.path(stored.sha256).unlink()
    store.path(stored.sha256).symlink_to(secret)
    assert store.open(stored) is None


# -- collections and wishes


def test_a_collection_replaces_the_one_before_it(store: Store) -> None:
    one, two = put(store, b"one"), put(store, b"two")
    store.publish("base.x.x86_64", collection(a=one))
    store.publish("base.x.x86_64", collection(b=two))
    assert store.collections() == {"base.x.x86_64": collection(b=two)}
    assert [path.name for path in store.leftovers()] == [one.sha256]


def test_a_damaged_collection_counts_as_none(store: Store) -> None:
    store.publish("base.x.x86_64", collection(a=put(store, b"one")))
    for text in ("", "{", '{"schema": 1}', '{"schema": 99, "title": "", "synced": ""}', "\udcff"):
        (store.sets / "base.x.x86_64.json").write_bytes(text.encode(errors="surrogateescape"))
        assert store.collection("base.x.x86_64") is None
    assert store.collections() == {}


def test_wishes_are_kept_and_a_damaged_list_says_what_to_do(store: Store) -> None:
    wishes = (
        Wish(Kind.BASE, "debian-12", Arch.X86_64, packages=("nginx",), labs=(Name("demo"),), asked=False),
        Wish(Kind.FILE, "https://h.example/x", Arch.X86_64, sha256="0" * 64),
    )
    store.wish(*wishes)
    assert store.wishes() == wishes
    assert len({id_of(wish) for wish in wishes}) == 2
    (store.folder / "wishes.json").write_text("{")
    with pytest.raises(Refused, match="cannot be read") as caught:
        store.wishes()
    assert "cache add" in caught.value.hint
