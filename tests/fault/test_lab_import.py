"""A lab exported from one kit and imported into another, through the real command line, and raised there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.labkit import LabKit, lab_kit

LAB = """\
lab: course
title: a course
machines:
  a: {base: tiny, memory: 32MiB, ready: {console: hello, within: 90s}, networks: [n]}
networks:
  n: {kind: isolated}
checks:
- {name: first, machine: a, run: "printf '\\u001b[2J'; true"}
"""

pytestmark = pytest.mark.sampled(3)


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        yield made


def left(kit: LabKit) -> list[str]:
    return sorted(path.name for path in (kit.path / "definitions/labs").glob("*")) + sorted(
        path.name for path in (kit.path / "definitions/labs").glob(".*")
    )


def test_a_lab_is_imported_and_raised(kit: LabKit) -> None:
    target = kit.folder / "given.tar.gz"
    kit.cli("lab", "export", kit.lab(LAB), target).expect(0, "no definition of base tiny")
    shown = kit.cli("lab", "import", target, "--dry-run").expect(0, "machine a from base tiny", "nothing was kept", "check first")
    assert "\x1b" not in shown.out
    assert "\\u001b[2J" in shown.out
    kit.cli("lab", "import", target).expect(2, "nobody is there to ask", "-y")
    assert left(kit) == []
    kit.cli("lab", "import", target, "-y").expect(0, "next:  pocketcloud lab up course")
    kit.cli("lab", "import", target, "-y").expect(0, "already")
    target.unlink()
    assert kit.cli("lab", "list", "-o", "json").expect(0).json()["imported"] == ["course"]
    kit.cli("lab", "up", "course").expect(0, "is up")
    # Raised, it is still the lab that was given: out again the same, and in again a success.
    kit.cli("lab", "export", "course", target).expect(0)
    kit.cli("lab", "import", target, "-y").expect(0, "already")
    kit.cli("lab", "destroy", "course", "-y").expect(0)
    assert left(kit) == ["course"]


def test_another_lab_of_the_name_needs_another_name(kit: LabKit) -> None:
    source = kit.folder / "other"
    kit.cli("lab", "export", kit.lab(LAB.replace("a course", "another")), source).expect(0)
    kit.cli("lab", "import", kit.lab(LAB).parent / "other", "-y", "--as", "again").expect(0, "lab up again")
    kit.cli("lab", "export", kit.lab(LAB.replace("a course", "a third")), kit.folder / "third").expect(0)
    kit.cli("lab", "import", kit.folder / "third", "-y", "--as", "again").expect(5, "another lab imported as again", "--as")
    kit.cli("lab", "import", kit.folder / "third", "-y", "--as", "demo").expect(5, "pocketcloud ships")
    kit.cli("lab", "up", "again").expect(0, "lab again is up")
    assert kit.cli("lab", "status", "again", "-o", "json").expect(0).json()["lab"] == "course"


def test_a_base_that_came_along_is_built(kit: LabKit) -> None:
    source = kit.folder / "brought"
    (source / "bases").mkdir(parents=True)
    (source / "lab.yaml").write_text(LAB.replace("course", "brought").replace("base: tiny", "base: mine"))
    (source / "bases/mine.yaml").write_text("base: mine\ntitle: t\nbuilder: layer\nfrom: debian-12\n")
    kit.cli("lab", "import", source, "-y").expect(0, "base build mine; pocketcloud lab up brought")
    kit.cli("lab", "up", "brought").expect(4, "has no base mine", "next:  pocketcloud base build mine")


def test_what_is_refused_leaves_nothing(kit: LabKit) -> None:
    before = left(kit)
    source = kit.folder / "forged"
    kit.cli("lab", "export", kit.lab(LAB), source).expect(0)
    (source / "lab.yaml").write_text((source / "lab.yaml").read_text().replace("a course", "a curse"))
    kit.cli("lab", "import", source, "-y").expect(5, "lab.yaml: not the file that SHA256SUMS lists")
    kit.cli("lab", "import", kit.folder / "none.tar.gz", "-y").expect(4, "there is no")
    kit.cli("lab", "import", "labs", "--dry-run").expect(5, "lab.yaml: missing", "demo.yaml", "lab up FILE")
    nowhere = {"POCKETCLOUD_DEFAULT_KIT": str(kit.folder / "nowhere"), "POCKETCLOUD_RUN_DIR": str(kit.folder / "no run")}
    kit.cli("lab", "export", "demo", kit.folder / "demo.tar.gz").expect(0)
    looked = kit.cli("lab", "import", kit.folder / "demo.tar.gz", "--dry-run", env=nowhere)
    looked.expect(0, "run: systemctl enable --now web", "nothing was kept")
    assert not (kit.folder / "nowhere").exists(), "to look at a lab takes no kit"
    kit.cli("lab", "import", "ext::sh -c id", "-y").expect(2, "not an address")
    kit.cli("lab", "export", "demo", kit.folder / "x.zip").expect(2, ".tar.gz")
    kit.cli("lab", "export", "nosuch", kit.folder / "x.tar.gz").expect(4, "no lab nosuch")
    assert left(kit) == before
