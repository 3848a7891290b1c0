"""Bases through their lives: built beside, proven, rolled back, pruned, interrupted; layers; and how they are listed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.bases import builder, definitions, newest, records, refresh, stages
from pocketcloud.bases.builder import Site
from pocketcloud.bases.layer import Layer
from pocketcloud.bases.listing import BaseLine, base_lines
from pocketcloud.bases.progress import OnProgress
from pocketcloud.bases.recipe import Order, Recipe
from pocketcloud.bases.refresh import NotProven
from pocketcloud.errors import BadDocument, HostLacks, NotFound, PartlyDone, Refused
from pocketcloud.locks import held
from pocketcloud.model.base import UNKNOWN, Arch, Base, BootstrapDefinition, Builder, Definition, LayerDefinition, Newest
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.storage import Storage, open_storage
from tests.built_base import kit_in
from tests.contract.stores import held as open_in_qemu
from tests.small_base import SEALED, SmallRecipe, small_definition

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SMALL = small_definition()
NAME = SMALL.base


class Workshop:
    """A kit, a recipe that makes small bases, and a clock that goes on by a day with every look."""

    def __init__(self, folder: Path) -> None:
        self.kit: Kit = kit_in(folder)
        self.storage: Storage = open_storage(self.kit)
        self.recipe = SmallRecipe()
        self.days = 0
        self.site = Site(self.kit, self.storage, clock=self._tick, recipes={Builder.BOOTSTRAP: self.recipe}.get)

    def _tick(self) -> datetime:
        self.days += 1
        return NOW + timedelta(days=self.days)

    def refresh(self, prove: refresh.Prove | None = None, *, keep_failed: bool = False) -> Base:
        """A refresh whose proof says yes, or `prove`."""
        return refresh.refresh(self.site, SMALL, Arch.X86_64, prove or proven, silent, keep_failed=keep_failed).base

    def current(self) -> Base:
        """The kit's base."""
        base = records.find(self.kit, NAME, Arch.X86_64)
        assert base is not None
        return base

    def volumes(self) -> set[str]:
        """The names of the volumes in the store."""
        return {volume.name for volume in self.storage.volumes()}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "kit")


def silent(_text: str, _fraction: float) -> None:
    """Progress nobody looks at."""


def proven(base: Base, _definition: Definition, _tell: OnProgress) -> str:
    """A proof that finds all well."""
    return f"{base.name} is well"


def not_proven(_base: Base, _definition: Definition, _tell: OnProgress) -> str:
    """A proof that finds it is not."""
    raise NotProven("ssh did not answer", "kernel panic\n")


@needs_root
def test_a_proven_base_becomes_current_and_the_one_before_is_kept(shop: Workshop) -> None:
    first = shop.refresh()
    assert (first.earlier, first.schema, first.sealed[-19:]) == ((), 2, "ext4 on partition 2")
    assert first.proven > first.built
    assert first.sizes.unsealed == 10 << 20
    assert 0 < first.sizes.files < 1 << 20
    second = shop.refresh()
    assert second.volume != first.volume
    assert second.earlier == (first.alone(),)
    assert shop.current() == second
    assert shop.volumes() == {first.volume, second.volume}
    third = shop.refresh()
    assert third.earlier == (second.alone(),)
    assert shop.volumes() == {second.volume, third.volume}


@needs_root
def test_labs_stay_on_what_they_were_made_from(shop: Workshop) -> None:
    first = shop.refresh()
    shop.storage.clone(first.volume, "lab.demo.web.root.g1")
    shop.refresh()
    third = shop.refresh()
    assert first.volume in shop.volumes()
    shop.storage.remove("lab.demo.web.root.g1")
    fourth = shop.refresh()
    assert shop.volumes() == {third.volume, fourth.volume}


@needs_root
def test_one_that_does_not_prove_itself_changes_nothing(shop: Workshop) -> None:
    before = shop.refresh()
    with pytest.raises(PartlyDone) as caught:
        shop.refresh(not_proven)
    assert "ssh did not answer" in caught.value.message
    assert f"built {before.built}" in caught.value.message or before.built in caught.value.message
    log = records.proof_log(shop.kit, NAME, Arch.X86_64)
    assert str(log) in caught.value.hint
    assert log.read_text() == "kernel panic\n"
    assert shop.current() == before
    assert shop.volumes() == {before.volume}
    shop.refresh()
    assert not log.exists(), "it spoke of one that is gone"


@needs_root
def test_one_that_failed_is_kept_where_that_is_asked_for(shop: Workshop) -> None:
    before = shop.refresh()
    for _ in range(2):
        with pytest.raises(PartlyDone, match="is kept as volume"):
            shop.refresh(not_proven, keep_failed=True)
        now = shop.current()
        assert now.failed is not None
        assert (now.volume, shop.volumes()) == (before.volume, {before.volume, now.failed.volume})
    refreshed = shop.refresh()
    assert refreshed.failed is None
    assert shop.volumes() == {before.volume, refreshed.volume}


@needs_root
def test_the_first_one_has_nothing_to_fall_back_on(shop: Workshop) -> None:
    with pytest.raises(PartlyDone, match="has no small still"):
        shop.refresh(not_proven)
    assert records.find(shop.kit, NAME, Arch.X86_64) is None
    assert shop.volumes() == set()


@needs_root
@pytest.mark.parametrize("error", [HostLacks("no libvirt"), KeyboardInterrupt()])
def test_a_proof_that_cannot_be_made_judges_nothing(shop: Workshop, error: BaseException) -> None:
    before = shop.refresh()

    def broken(_base: Base, _definition: Definition, _tell: OnProgress) -> str:
        raise error

    with pytest.raises(type(error)):
        shop.refresh(broken)
    assert (shop.current(), shop.volumes()) == (before, {before.volume})


@needs_root
def test_a_kill_in_the_middle_is_swept_by_the_next(shop: Workshop) -> None:
    """While it is built, and while it is proven: the old one stays current, and the next one takes away what is left."""
    before = shop.refresh()

    def killed(_base: Base, _definition: Definition, _tell: OnProgress) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    class Killed(SmallRecipe):
        def make(self, order: Order[BootstrapDefinition], volume: str) -> str:
            super().make(order, volume)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    for recipe in (shop.recipe, Killed(made=7)):
        child = os.fork()
        if child == 0:
            site = dataclasses.replace(shop.site, recipes={Builder.BOOTSTRAP: recipe}.get)
            refresh.refresh(site, SMALL, Arch.X86_64, killed, silent)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert shop.current() == before
        assert len(shop.volumes()) == 2
    after = shop.refresh()
    assert shop.volumes() == {before.volume, after.volume}
    assert list((shop.kit.path / "media").iterdir()) == []


@needs_root
def test_rolling_back_and_forward_again(shop: Workshop) -> None:
    first = shop.refresh()
    with pytest.raises(Refused, match="no earlier one"):
        refresh.rollback(shop.kit, shop.storage, NAME, Arch.X86_64)
    second = shop.refresh()
    back = refresh.rollback(shop.kit, shop.storage, NAME, Arch.X86_64)
    assert (back.volume, back.built, back.earlier) == (first.volume, first.built, (second.alone(),))
    assert shop.current() == back
    forward = refresh.rollback(shop.kit, shop.storage, NAME, Arch.X86_64)
    assert (forward.volume, forward.earlier) == (second.volume, (first.alone(),))
    assert shop.volumes() == {first.volume, second.volume}
    built = builder.build(shop.kit, shop.storage, SMALL, Arch.X86_64, on_progress=silent, recipes=shop.site.recipes)
    assert not built.fresh
    with pytest.raises(NotFound, match="no base other"):
        refresh.rollback(shop.kit, shop.storage, Name("other"), Arch.X86_64)


@needs_root
def test_pruning_leaves_what_is_current_and_what_is_used(shop: Workshop) -> None:
    first, second = shop.refresh(), shop.refresh()
    stage = stages.folder(shop.kit, NAME, Arch.X86_64) / "0.tar.zst"
    stage.parent.mkdir(parents=True)
    stage.write_bytes(b"")
    shop.storage.clone(first.volume, "lab.demo.web.root.g1")
    assert refresh.prune(shop.kit, shop.storage, shop.current()) == (str(stage),)
    assert shop.current() == second.alone()
    shop.storage.remove("lab.demo.web.root.g1")
    assert refresh.prune(shop.kit, shop.storage, shop.current()) == (first.volume,)
    assert shop.volumes() == {second.volume}


@needs_root
def test_a_base_is_removed_with_what_is_kept_of_it_unless_something_stands_on_that(shop: Workshop) -> None:
    first = shop.refresh()
    shop.refresh()
    shop.storage.clone(first.volume, "lab.demo.web.root.g1")
    shop.storage.clone(first.volume, "base.above.x86_64.0123")
    with pytest.raises(Refused) as caught:
        records.remove(shop.kit, shop.storage, NAME, Arch.X86_64)
    assert caught.value.hint == "pocketcloud lab destroy demo; pocketcloud base remove above --arch x86_64"
    shop.storage.remove("lab.demo.web.root.g1", "base.above.x86_64.0123")
    assert records.remove(shop.kit, shop.storage, NAME, Arch.X86_64)
    assert shop.volumes() == set()


@needs_root
def test_a_base_that_the_store_cannot_remove_now_stays_whole(shop: Workshop) -> None:
    base = shop.refresh()
    with open_in_qemu(shop.storage, base.volume, readonly=True):
        with pytest.raises(Refused, match="open"):
            records.remove(shop.kit, shop.storage, NAME, Arch.X86_64)
        assert shop.current() == base
        assert shop.volumes() == {base.volume}
    assert records.remove(shop.kit, shop.storage, NAME, Arch.X86_64)


@needs_root
def test_an_older_base_goes_with_the_last_that_stood_on_it(shop: Workshop, tmp_path: Path) -> None:
    first = shop.refresh()
    shop.storage.clone(first.volume, "lab.demo.web.root.g1")
    shop.refresh()
    third = shop.refresh()
    assert first.volume in shop.volumes()

    def hold(name: str) -> AbstractContextManager[None]:
        return held(tmp_path / "locks", name, "a test", wait=False)

    def swept() -> tuple[str, ...]:
        return builder.sweep_unnamed(shop.kit, shop.storage, hold)

    assert swept() == (), "a lab stands on it"
    shop.storage.remove("lab.demo.web.root.g1")
    with hold(NAME):
        assert swept() == (), "another command is at work on that base"
    assert swept() == (first.volume,)
    assert shop.volumes() == set(third.volumes)


@needs_root
def test_an_image_that_is_not_sealed_does_not_become_a_base(shop: Workshop) -> None:
    before = shop.refresh()
    shop.recipe.files = {**SEALED, "/etc/ssh/ssh_host_rsa_key": "key"}
    with pytest.raises(Refused, match="not sealed"):
        shop.refresh()
    with pytest.raises(Refused, match="not sealed"):
        builder.make(shop.site, SMALL, Arch.AARCH64, silent, anew=True)
    assert (shop.current(), shop.volumes()) == (before, {before.volume})


def test_records_of_schema_1_are_read_and_newer_ones_refused(shop: Workshop) -> None:
    path = shop.kit.path / "bases/old/x86_64.json"
    path.parent.mkdir()
    said = {
        "name": "old",
        "arch": "x86_64",
        "digest": "d",
        "volume": "v",
        "firmware": "efi",
        "built": "2026-01-01T00:00:00+00:00",
    }
    path.write_text(json.dumps(said))
    base = records.find(shop.kit, "old", Arch.X86_64)
    assert base is not None
    assert (base.schema, base.volumes, base.sealed, base.sizes.files) == (1, ("v",), "", 0)
    path.write_text(json.dumps(said | {"schema": 99}))
    with pytest.raises(Refused, match="schema: 99") as caught:
        records.find(shop.kit, "old", Arch.X86_64)
    assert "newer pocketcloud" in caught.value.hint


# -- listing ----------------------------------------------------------------------------------------------------------


def lines(shop: Workshop, folder: Path, now: Newest) -> dict[str, BaseLine]:
    """The list, with the definitions in `folder`, on sources that have `now`."""
    folder.mkdir(exist_ok=True)
    found = base_lines(
        shop.kit, shop.storage, NOW + timedelta(days=30), folder=folder, ask=lambda *_: now, recipes=shop.site.recipes
    )
    return {line.base.name: line for line in found}


def written(folder: Path, definition: Definition) -> None:
    """Put a definition into a folder, as YAML (of which JSON is a part)."""
    from pocketcloud.documents import plain

    folder.mkdir(exist_ok=True)
    said = {("from" if key == "from_" else key): value for key, value in plain(definition).items() if value}
    (folder / f"{definition.base}.yaml").write_text(json.dumps(said))


@needs_root
def test_the_list_tells_age_users_and_what_would_make_a_newer_one(shop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "bases"
    written(folder, SMALL)
    base = shop.refresh()
    shop.storage.clone(base.volume, "lab.demo.web.root.g1")
    shop.storage.clone(base.volume, "base.above.x86_64.0123")
    line = lines(shop, folder, base.packages)["small"]
    assert (line.labs, line.layers, line.stale, line.updates) == (("demo",), ("above",), "", "none")
    assert line.age == timedelta(days=29).total_seconds()
    assert lines(shop, folder, Newest("2", "2026-05-09T08:00:00+00:00"))["small"].updates == "since 2026-05-09"
    assert lines(shop, folder, Newest("2"))["small"].updates == "yes"
    assert lines(shop, folder, UNKNOWN)["small"].updates == "unknown (offline)"
    written(folder, small_definition(packages=("vim",)))
    assert lines(shop, folder, UNKNOWN)["small"].stale == "its definition changed"
    mine = {
        "base": "small", "title": "Small", "family": "fedora", "version": "44", "builder": "kickstart",
        "architectures": ["x86_64"], "template": "nosuch.ks.j2", "tree": "https://example.com/os/",
    }  # fmt: skip
    (folder / "small.yaml").write_text(json.dumps(mine))
    shipped = base_lines(shop.kit, shop.storage, NOW + timedelta(days=30), folder=folder, ask=None)
    assert "cannot be built now" in shipped[0].stale, "a template that is missing takes its line, not the list"
    (folder / "small.yaml").unlink()
    assert lines(shop, folder, UNKNOWN)["small"].updates == "unknown (no definition)"


RELEASE = """\
Codename: {suite}
Date: Fri, 20 Nov 2026 02:11:10 UTC
MD5Sum:
 {zeros} 1234 main/binary-amd64/Packages
SHA256:
 {amd64} 1234 {prefix}main/binary-amd64/Packages
 {other} 234 {prefix}main/binary-amd64/Packages.xz
 {other} 1234 {prefix}main/binary-arm64/Packages
"""


def release(suite: str, amd64: str, other: str = "e", prefix: str = "") -> str:
    return RELEASE.format(suite=suite, amd64=amd64 * 64, other=other * 64, zeros="0" * 32, prefix=prefix)


def test_sources_are_compared_by_their_lists_not_by_their_dates() -> None:
    suites = [release("bookworm", "a"), release("bookworm-security", "b", prefix="updates/")]
    found = newest.read(suites, Arch.X86_64)
    assert found.date == "2026-11-20T02:11:10+00:00"
    signed_anew = [text.replace("20 Nov", "21 Nov") for text in suites]
    assert newest.read(signed_anew, Arch.X86_64).digest == found.digest
    assert newest.read(reversed(suites), Arch.X86_64) == found
    assert newest.read([suites[0], release("bookworm-security", "c")], Arch.X86_64).digest != found.digest
    assert newest.read([suites[0], release("bookworm-security", "b", other="f")], Arch.X86_64).digest == found.digest
    assert newest.read(suites, Arch.AARCH64).digest != found.digest
    assert newest.read(["<html>nothing here</html>"], Arch.X86_64) == UNKNOWN


# -- layers -----------------------------------------------------------------------------------------------------------


def layer(name: str, parent: str, **changes: object) -> LayerDefinition:
    values = {"base": Name(name), "title": name, "from_": Name(parent), **changes}
    return LayerDefinition(**values)  # type: ignore[arg-type] # the fields of the definition


def test_a_layer_is_keyed_by_what_it_stands_on(shop: Workshop) -> None:
    recipes = {Builder.BOOTSTRAP: shop.recipe, Builder.LAYER: shop.recipe}.get
    base = Base(NAME, Arch.X86_64, "d", "base.small.x86_64.1", SmallRecipe().firmware(SMALL, Arch.X86_64), "2026")
    above = layer("web", "small", post=("echo",))
    one = builder.inputs_digest(above, Arch.X86_64, base, recipes)
    assert one == builder.inputs_digest(above, Arch.X86_64, dataclasses.replace(base, proven="2027"), recipes)
    others = [
        builder.inputs_digest(above, Arch.X86_64, dataclasses.replace(base, volume="base.small.x86_64.1.2"), recipes),
        builder.inputs_digest(above, Arch.X86_64, dataclasses.replace(base, digest="e"), recipes),
        builder.inputs_digest(layer("web", "small", post=("echo 2",)), Arch.X86_64, base, recipes),
    ]
    assert len({one, *others}) == 4


@needs_root
def test_a_layer_is_a_thin_clone_that_follows_its_parent_when_it_is_refreshed(shop: Workshop, tmp_path: Path) -> None:
    """One without anything to add, which takes no guest."""
    known: dict[Builder, Recipe[Any]] = {Builder.BOOTSTRAP: shop.recipe, Builder.LAYER: Layer()}
    recipes = known.get
    site = dataclasses.replace(shop.site, recipes=recipes)
    above = layer("above", "small")
    folder = tmp_path / "bases"
    written(folder, SMALL)
    written(folder, above)
    parent = shop.refresh()

    def built() -> builder.Built:
        return builder.build(
            shop.kit, shop.storage, above, Arch.X86_64, on_progress=silent, recipes=recipes, clock=shop.site.clock
        )

    def stale() -> str:
        found = base_lines(shop.kit, shop.storage, NOW, folder=folder, ask=None, recipes=recipes)
        return next(line.stale for line in found if line.base.name == "above")

    first = built()
    assert first.fresh
    assert not built().fresh
    volume = next(volume for volume in shop.storage.volumes() if volume.name == first.base.volume)
    assert (volume.parent, volume.sealed, volume.size) == (parent.volume, True, 40 << 20)
    assert (first.base.parent, first.base.firmware) == (parent.volume, parent.firmware)
    assert first.base.sealed
    assert first.base.sizes.stored < parent.sizes.stored
    assert stale() == ""
    with pytest.raises(Refused, match=r"base\.above"):
        records.remove(shop.kit, shop.storage, NAME, Arch.X86_64)

    renewed = shop.refresh()
    assert stale() == "small was renewed"
    made = refresh.refresh(site, above, Arch.X86_64, proven, silent).base
    assert (made.parent, made.earlier) == (renewed.volume, (first.base.alone(),))
    assert stale() == ""
    third = shop.refresh()
    assert shop.volumes() == {parent.volume, renewed.volume, third.volume, first.base.volume, made.volume}
    refresh.prune(shop.kit, shop.storage, made)
    refresh.prune(shop.kit, shop.storage, third)
    assert shop.volumes() == {renewed.volume, third.volume, made.volume}


def test_what_a_layer_stands_on_comes_first(tmp_path: Path) -> None:
    for definition in (SMALL, layer("web", "small"), layer("app", "web")):
        written(tmp_path / "bases", definition)
    app, web, small = (definitions.find(name, tmp_path / "bases") for name in ("app", "web", "small"))
    assert definitions.lineage(app, tmp_path / "bases") == (small, web, app)
    assert definitions.parents_first([app, small, web], tmp_path / "bases") == (small, web, app)
    assert definitions.parents_first([app, small], tmp_path / "bases") == (small, app)


def test_layers_that_cannot_be_are_refused_with_the_reason(shop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "bases"
    arm = small_definition("arm", architectures=(Arch.AARCH64,))
    only = layer("only", "arm", architectures=(Arch.X86_64,))
    for definition in (layer("lost", "nothing"), layer("one", "two"), layer("two", "one"), layer("self", "self"), arm, only):
        written(folder, definition)
    said = {
        "lost": "stands on nothing",
        "one": "one stands on two stands on one",
        "self": "self stands on self",
        "only": "is not",
    }
    for name, words in said.items():
        with pytest.raises(BadDocument, match=words):
            definitions.lineage(definitions.find(name, folder), folder)
    with pytest.raises(NotFound, match="is a layer on small") as caught:
        builder.parent_of(shop.kit, layer("web", "small"), Arch.X86_64)
    assert caught.value.hint == "pocketcloud base build small --arch x86_64"
