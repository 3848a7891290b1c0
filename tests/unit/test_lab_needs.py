"""What a lab says it needs as a whole, and the packages of its machines: judged before anything is made, kept in the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud import guest_packages
from pocketcloud.bases import definitions
from pocketcloud.cache.labs import packages_of, renewed, wishes_of
from pocketcloud.cache.store import Store, folder_of, id_of
from pocketcloud.cache.supply import state_of
from pocketcloud.documents import load_lab, parse_lab
from pocketcloud.errors import BadDocument, HostLacks, NoSpace, NotFound
from pocketcloud.lab.caching import check_offline
from pocketcloud.model.base import Arch, Base, Firmware
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish
from pocketcloud.model.lab import Lab, Needs, Outside
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import GIB, MIB, Size
from pocketcloud.plan.steps import Provision
from pocketcloud.plan.up import plan_up
from pocketcloud.resources import shipped
from tests.built_base import kit_in
from tests.plans import LAB, check_up, fresh_host, raise_lab, up_host
from tests.simulation import INSTANCE, ground, lab, machine

TOP = Path(__file__).resolve().parents[2]
WITH_PACKAGES = """\
lab: tools
machines:
  one: {base: debian-12, networks: [front], packages: [git, tmux]}
  two: {base: debian-12, networks: [front], packages: [tmux, jq]}
  three: {base: box, networks: [front], packages: [vim]}
networks: {front: }
"""


def needing(**needs: object) -> Lab:
    return replace(LAB, needs=Needs(**needs))  # type: ignore[arg-type] # its fields


# -- the file --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("{memory: 600MiB}", "its machines have 1 GiB together, and 600 MiB is less"),
        ("{nesting: true}", "none of its machines is `nested:`"),
        ("{outside: internet}", "'nothing', 'cache' or 'network'"),
        ("{space: 2GB}", "a size with its unit"),
        ("{memry: 2GiB}", "did you mean `memory`?"),
    ],
)
def test_needs_that_cannot_be_meant(needs: str, words: str) -> None:
    text = f"lab: x\nneeds: {needs}\nmachines:\n"
    text += "".join(f"  {name}: {{base: tiny, ready: {{console: x}}}}\n" for name in ("a", "b"))
    with pytest.raises(BadDocument) as bad:
        parse_lab(text, "f")
    assert words in bad.value.message


@pytest.mark.parametrize("name", ["-y", "git=1", "git*", "a b", "", "../x", "@core"])
def test_packages_that_are_no_names(name: str) -> None:
    text = WITH_PACKAGES.replace("[git, tmux]", json.dumps([name]))
    with pytest.raises(BadDocument, match="no package is called"):
        parse_lab(text, "f")


def test_packages_take_a_network() -> None:
    with pytest.raises(BadDocument, match="needs a network to be provisioned"):
        parse_lab("lab: x\nmachines:\n  a: {base: tiny, packages: [git], ready: {console: x}}\n", "f")


# -- the plan --------------------------------------------------------------------------------------------------------------


def test_what_it_needs_beside_its_machines_is_refused_with_the_figures() -> None:
    have, wanted = fresh_host().inventory(), needing(memory=Size(8 * GIB), space=Size(50 * GIB))
    with pytest.raises(NoSpace) as refused:
        plan_up(wanted, INSTANCE, have, ground(memory=4 * GIB, space=20 * GIB))
    assert "memory: lab demo needs 8.2 GiB, QEMU's share counted; this host can give labs 4 GiB" in refused.value.message
    assert "space: lab demo needs 50 GiB; kit k has 20 GiB free" in refused.value.message
    assert plan_up(wanted, INSTANCE, have, ground(memory=9 * GIB, space=50 * GIB)).steps


def test_what_is_up_has_its_part_already() -> None:
    host = up_host()
    plan_up(needing(memory=Size(8 * GIB), space=Size(50 * GIB)), INSTANCE, host.inventory(), ground(memory=GIB, space=GIB))


def test_machines_that_do_not_fit_are_told_by_name_and_once() -> None:
    with pytest.raises(NoSpace) as refused:
        plan_up(needing(memory=Size(8 * GIB)), INSTANCE, fresh_host().inventory(), ground(memory=100 * MIB))
    assert refused.value.message.count("memory:") == 1
    assert "(a 64 MiB, b 64 MiB" in refused.value.message


def test_a_lab_that_takes_a_network_to_be_made_is_refused_without_one_only_then() -> None:
    offline, wanted = replace(ground(), online=False), needing(outside=Outside.NETWORK)
    with pytest.raises(HostLacks, match=r"lab demo needs a network while it is made \(a\)") as refused:
        plan_up(wanted, INSTANCE, fresh_host().inventory(), offline)
    assert "--online" in refused.value.hint
    assert plan_up(wanted, INSTANCE, fresh_host().inventory(), ground()).steps
    plan_up(wanted, INSTANCE, up_host(wanted).inventory(), offline)
    plan_up(needing(outside=Outside.CACHE), INSTANCE, fresh_host().inventory(), offline)


def test_packages_alone_are_provisioned_once() -> None:
    wanted = lab(("front",), a=replace(machine("front"), packages=("git",)), b=machine("front"))
    host = fresh_host()
    plan = raise_lab(wanted, host)
    assert [step.machine for step in plan.steps if isinstance(step, Provision)] == ["a"]
    check_up(host, wanted)


# -- the cache -------------------------------------------------------------------------------------------------------------


def test_a_labs_packages_are_wished_for_with_its_bases() -> None:
    wanted = parse_lab(WITH_PACKAGES, "f")
    assert packages_of(wanted, (Name("two"),)) == {"debian-12": ("git", "tmux"), "box": ("vim",)}
    (wish,) = wishes_of(wanted, Name("tools"), Arch.X86_64, ("nginx-light",))
    assert wish == Wish(
        Kind.BASE, "debian-12", Arch.X86_64, ("git", "tmux", "jq", "nginx-light"), labs=(Name("tools"),), asked=False
    )


def test_a_sync_looks_at_the_labs_anew() -> None:
    first = parse_lab(WITH_PACKAGES.replace(", packages: [tmux, jq]", ""), "f")
    known = (*wishes_of(first, Name("tools"), Arch.X86_64), Wish(Kind.BASE, "fedora-44", Arch.X86_64))
    labs = {Name("tools"): parse_lab(WITH_PACKAGES, "f"), Name("other"): LAB}
    wishes = {wish.name: wish for wish in renewed(known, labs, Arch.X86_64)}
    assert set(wishes) == {"debian-12", "fedora-44"}
    assert wishes["debian-12"].packages == ("git", "tmux", "jq")
    assert renewed(known[1:], labs, Arch.X86_64) == known[1:]


def test_packages_that_the_cache_lacks_are_told_before_a_lab_is_raised_offline(tmp_path: Path) -> None:
    kit, wanted = kit_in(tmp_path), replace(parse_lab(WITH_PACKAGES, "f"), networks={})
    base = Base(Name("debian-12"), Arch.X86_64, "d", "base.debian-12.d", Firmware.BIOS, "2024-01-01T00:00:00+00:00")
    box = replace(base, name=Name("box"))
    with pytest.raises(NotFound) as refused:
        check_offline(kit, wanted, Name("tools"), {"debian-12": base, "box": box}, ())
    assert "packages for machines of base debian-12 (git, tmux, jq): never synced" in refused.value.message
    assert "pocketcloud cache add --lab tools" in refused.value.hint
    check_offline(kit, wanted, Name("tools"), {"debian-12": base, "box": box}, wanted.machines)


def test_packages_of_rpms_are_looked_for_in_the_repositories_that_are_kept(tmp_path: Path) -> None:
    kit = kit_in(tmp_path)
    store = Store(folder_of(kit))
    store.make()
    wish = Wish(Kind.BASE, "centos-stream-9-cloud", Arch.X86_64, ("podman", "skopeo"))
    definitions.find(wish.name)
    files = {"mirror.stream.centos.org/9-stream/AppStream/x86_64/os/Packages/podman-5.2-1.el9.x86_64.rpm": Stored("0" * 64, 1)}
    path = store.path("0" * 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    store.publish(id_of(wish), Collection(CACHE_SCHEMA, wish.title, "", files=files))
    assert state_of(kit, wish) == "lacks skopeo"
    assert state_of(kit, replace(wish, packages=("podman",))) == ""


# -- the guest's script, and the list ----------------------------------------------------------------------------------------


def test_a_machine_is_given_the_script_the_names_and_patience() -> None:
    written = dict(guest_packages.files(("git", "tmux")))
    assert written[f"{guest_packages.FOLDER}/packages"] == b"git\ntmux\n"
    assert written[f"{guest_packages.FOLDER}/packages.sh"] == guest_packages.SCRIPT.read_bytes()
    assert not any(path.endswith("/proxy") for path in written), "its own configuration finds the cache"
    assert f"{guest_packages.FOLDER}/packages.sh" in guest_packages.COMMAND


@pytest.mark.parametrize(
    ("manager", "asked"),
    [
        ("apt-get", ["-q update", "-q -y --no-install-recommends install -- git tmux"]),
        ("dnf", ["-y --setopt=install_weak_deps=False install -- git tmux"]),
        ("zypper", ["--non-interactive install --no-recommends -- git tmux"]),
        ("apk", ["add -- git tmux"]),
    ],
)
def test_the_machines_own_package_manager_is_asked_with_its_own_sources(tmp_path: Path, manager: str, asked: list[str]) -> None:
    """By a stand-in that writes down what it is asked, and what configuration it would read."""
    for path, content in guest_packages.files(("git", "tmux")):
        (tmp_path / Path(path).name).write_bytes(content)
    (tmp_path / "bin").mkdir()
    for tool in ("cat", "sh"):  # and no other package manager
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    stand_in = tmp_path / "bin" / manager
    stand_in.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho "$APT_CONFIG" >> {tmp_path}/read\n')
    stand_in.chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin", "APT_CONFIG": f"{tmp_path}/apt.conf"}
    subprocess.run(["/bin/sh", tmp_path / "packages.sh", tmp_path], env=env, check=True)
    assert (tmp_path / "asked").read_text().splitlines() == asked
    assert set((tmp_path / "read").read_text().splitlines()) == {f"{tmp_path}/apt.conf"}


def test_the_shipped_labs_are_listed_with_what_they_teach_and_need() -> None:
    argv = [sys.executable, "-m", "pocketcloud", "lab", "list", "--available"]
    told = json.loads(subprocess.run([*argv, "-o", "json"], capture_output=True, check=True, cwd=TOP).stdout)
    shipped_labs = {path.stem: load_lab(path) for path in shipped("labs").glob("*.yaml")}
    assert {one["lab"]: one["title"] for one in told} == {name: found.title for name, found in shipped_labs.items()}
    demo = next(one for one in told if one["lab"] == "demo")
    assert demo["needs"] == {"memory": GIB, "space": 2 * GIB, "outside": "nothing", "nesting": False}
    table = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=TOP).stdout
    assert all(line in table for found in shipped_labs.values() for line in found.teaches)
