"""Labs as files for others: what an export holds, that it is the same each time, and reads back equal."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.bases import definitions
from pocketcloud.documents import load_lab, parse_lab
from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.lab import Check, Lab, Machine, ProvisionStep, Ready
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import Duration, Size
from pocketcloud.resources import shipped
from pocketcloud.sharing.bundle import archive, contents, lab_text
from pocketcloud.sharing.making import bundle_of, secrets_in
from pocketcloud.sharing.writing import write_file, write_folder

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
STEPS = st.builds(lambda text: ProvisionStep(write="/etc/x y", content=text), TEXTS) | st.builds(
    lambda text: ProvisionStep(run=text), TEXTS
)


def lab_of(*steps: ProvisionStep, base: str = "debian-12", title: str = "", checks: tuple[Check, ...] = ()) -> Lab:
    wired = parse_lab("lab: x\nmachines: {a: {base: tiny, networks: [n]}}\nnetworks: {n: }\n", "f")
    machine = Machine(Name(base), provision=steps, networks=wired.machines[Name("a")].networks)
    return Lab(Name("x"), {Name("a"): machine}, wired.networks, title, checks=checks)


@pytest.fixture
def own_bases(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's own definitions."""
    os.environ["POCKETCLOUD_BASES"] = str(tmp_path)
    yield tmp_path
    del os.environ["POCKETCLOUD_BASES"]


def read_back(text: str, files: Mapping[str, bytes]) -> Lab:
    return parse_lab(text, "lab.yaml", lambda name: files[name])


@pytest.mark.parametrize("path", sorted(shipped("labs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_lab_reads_back_equal(path: Path) -> None:
    lab = load_lab(path)
    text, files = lab_text(lab)
    back = read_back(text, files)
    assert back == lab
    assert list(back.machines) == list(lab.machines)
    assert [list(m.networks) for m in back.machines.values()] == [list(m.networks) for m in lab.machines.values()]


@given(st.lists(STEPS, max_size=3), TEXTS, TEXTS, st.integers(1 << 24, 1 << 41), st.floats(0.001, 86400))
def test_whatever_a_lab_says_reads_back_equal(
    steps: list[ProvisionStep], title: str, hint: str, memory: int, within: float
) -> None:
    check = Check(Name("on"), Name("a"), "true", 3, hint, Duration(within))
    first = lab_of(*steps, title=title, checks=(check,))
    a = first.machines[Name("a")]
    lab = replace(first, machines={Name("a"): replace(a, memory=Size(memory), ready=Ready(within=Duration(within)))})
    text, files = lab_text(lab)
    assert read_back(text, files) == lab


def test_long_contents_lie_beside_by_their_digest() -> None:
    long = "line\n" * 1000
    lab = lab_of(
        ProvisionStep(write="/etc/../x y", content=long), ProvisionStep(write="/b", content=long), ProvisionStep(run="x" * 9000)
    )
    text, files = lab_text(lab)
    digest = hashlib.sha256(long.encode()).hexdigest()[:12]
    assert list(files) == [f"files/{digest}-x_y", f"files/{digest}-b"]
    assert "line" not in text
    assert read_back(text, files) == lab


def test_an_export_holds_definitions_templates_and_the_sums_of_all() -> None:
    files = contents(bundle_of(lab_of(base="fedora-44")))
    assert {"lab.yaml", "pocketcloud-lab.json", "bases/fedora-44.yaml", "SHA256SUMS"} < files.keys()
    # The answer, the script beside it, and what they include.
    assert {"kickstarts/anaconda.ks.j2", "kickstarts/anaconda.sh.j2", "kickstarts/seal.sh.j2"} < files.keys()
    assert "kickstarts/debian.preseed.j2" not in files
    listed = [line.split("  ") for line in files["SHA256SUMS"].decode().splitlines()]
    sums = {name: digest for digest, name in listed}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "SHA256SUMS"}
    manifest = json.loads(files["pocketcloud-lab.json"])
    assert manifest["bases"] == {"fedora-44": sums["bases/fedora-44.yaml"]}
    assert {f"kickstarts/{name}": digest for name, digest in manifest["templates"].items()} == {
        name: digest for name, digest in sums.items() if name.startswith("kickstarts/")
    }


def test_a_base_without_a_definition_is_named_without_one() -> None:
    files = contents(bundle_of(lab_of(base="appliance")))
    assert json.loads(files["pocketcloud-lab.json"])["bases"] == {"appliance": ""}
    assert not any(name.startswith("bases/") for name in files)


def test_a_layer_brings_what_it_stands_on(own_bases: Path) -> None:
    (own_bases / "course.yaml").write_text("base: course\ntitle: t\nbuilder: layer\nfrom: debian-12\npost: [touch /course]\n")
    bundle = bundle_of(lab_of(base="course"))
    assert list(bundle.bases) == ["course", "debian-12"]
    assert definitions.find("course").base == "course"


def test_a_private_key_is_told() -> None:
    # In parts, so that this file holds none.
    key = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nx\n"
    assert secrets_in(lab_of(ProvisionStep(write="/k", content=key), ProvisionStep(run="x"))) == ("a: provision[0] (write /k)",)


def test_the_same_lab_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    packed = set()
    for number, zone in enumerate(("UTC", "Asia/Tokyo")):
        target = tmp_path / f"{number}.tar.gz"
        argv = [sys.executable, "-m", "pocketcloud", "lab", "export", str(shipped("labs", "demo.yaml")), str(target)]
        env = os.environ | {"TZ": zone, "PYTHONHASHSEED": str(number), "POCKETCLOUD_DEFAULT_KIT": str(tmp_path / "none")}
        env |= {"POCKETCLOUD_RUN_DIR": str(tmp_path / "run")}
        subprocess.run(argv, env=env, check=True, capture_output=True, umask=0o027 * number, cwd=shipped())
        packed.add(target.read_bytes())
    (one,) = packed
    assert one[4:8] == bytes(4), "gzip's time"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(one))) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.mtime, m.mode, m.type) for m in members} == {(0, 0, "", 0, 0o644, tarfile.REGTYPE)}
    assert [m.name for m in members] == [*sorted(m.name for m in members if "SUMS" not in m.name), "demo/SHA256SUMS"]


def test_an_export_is_checked_by_the_tools_of_any_host(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(archive(contents(bundle_of(lab_of(base="fedora-44"))), "x"))
    subprocess.run(["tar", "-xzf", "x.tar.gz"], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "x", check=True)


def test_folders_are_written_whole_and_nothing_is_replaced(tmp_path: Path) -> None:
    files = contents(bundle_of(lab_of()))
    target = tmp_path / "out"
    target.mkdir()
    write_folder(target, files)
    write_folder(target, files)  # the same again
    (target / "mine").write_text("mine")
    with pytest.raises(Refused, match="not empty"):
        write_folder(target, files)
    assert (target / "mine").read_text() == "mine"
    with pytest.raises(NotFound):
        write_folder(tmp_path / "no/where", files)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        write_folder(tmp_path / "link", files)
    with pytest.raises(Refused):
        write_file(target, b"x")
    long = tmp_path / ("x" * 300)
    with pytest.raises(Refused, match="cannot be written: File name too long"):
        write_folder(long, files)
    with pytest.raises(Refused, match="cannot be written: File name too long"):
        write_file(long, b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"], "nothing is left aside"
