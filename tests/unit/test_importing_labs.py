"""Labs from elsewhere: what is taken, what is refused with the entry's name, and that nothing is left of what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocketcloud.documents import load_lab, parse_lab
from pocketcloud.errors import BadDocument, NotFound, PocketcloudError, Refused, UsageError
from pocketcloud.kit.directory import make_tree
from pocketcloud.model.kit import KIT_SCHEMA, Kit, Manifest
from pocketcloud.model.lab import Lab
from pocketcloud.model.names import Name
from pocketcloud.model.profile import Medium
from pocketcloud.resources import IMPORTED, shipped
from pocketcloud.sharing.bundle import Bundle, archive, contents
from pocketcloud.sharing.git import git_tree, parse_address
from pocketcloud.sharing.importing import Candidate, Standing, check_name, read_source
from pocketcloud.sharing.kept import base_folders, imported_labs, keep, lab_file
from pocketcloud.sharing.making import bundle_of
from pocketcloud.system import Completed, run

TEXT = """\
lab: course
machines:
  a:
    base: debian-12
    networks: [n]
    provision:
    - {write: /etc/x, from: files/x}
    - {run: 'true'}
networks: {n: }
checks:
- {name: up, machine: a, run: 'true'}
"""
OWN = "base: mine\ntitle: t\nbuilder: layer\nfrom: debian-12\npost: [touch /x]\n"


def lab(text: str = TEXT) -> Lab:
    return parse_lab(text, "f", lambda _: b"content\n" * 1000)


FILES = contents(bundle_of(lab()))
INSTALLED = contents(bundle_of(lab(TEXT.replace("debian-12", "fedora-44"))))
LONG = next(name for name in FILES if name.startswith("files/"))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    make_tree(tmp_path / "kit")
    manifest = Manifest(KIT_SCHEMA, "0" * 32, Name("k"), "", "", "qcow2")
    return Kit(manifest, tmp_path / "kit", Medium.DIR)


@pytest.fixture
def know_imported(kit: Kit) -> Iterator[Callable[[], None]]:
    """Lets definitions be found that were imported."""
    yield lambda: os.environ.update({IMPORTED: "\n".join(map(str, base_folders(kit.path)))})
    os.environ.pop(IMPORTED, None)


def resummed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with sums that are right."""
    rest = {name: content for name, content in files.items() if name != "SHA256SUMS"}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in rest.items())
    return rest | {"SHA256SUMS": sums.encode()}


def packed(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "lab.tar.gz"
    path.write_bytes(content)
    return str(path)


def tar_of(*more: tarfile.TarInfo, files: dict[str, bytes] | None = None, content: bytes = b"") -> bytes:
    """An archive of a good lab (or `files`) with more entries."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (FILES if files is None else files).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            if info.isreg():
                info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content.ljust(info.size, b"\0")) if info.isreg() else None)
    return gzip.compress(raw.getvalue())


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    return info


def refused(source: str, *words: str) -> PocketcloudError:
    with pytest.raises((Refused, BadDocument)) as caught:
        read_source(source)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.message.isprintable() or isinstance(caught.value, BadDocument)
    return caught.value


# -- what is right -------------------------------------------------------------------------------------------------------


def test_what_is_exported_is_imported_whole(tmp_path: Path, kit: Kit) -> None:
    found = read_source(packed(tmp_path, archive(FILES, "course")))
    assert found.bundle == bundle_of(lab())
    assert [(base.name, base.standing) for base in found.bases] == [("debian-12", Standing.KNOWN)]
    assert keep(kit, Name("course"), found.bundle)
    assert load_lab(lab_file(kit.path, "course")) == lab()
    assert read_source(str(lab_file(kit.path, "course").parent)).bundle == found.bundle
    assert imported_labs(kit.path) == ("course",)
    assert contents(found.bundle) == FILES, "exported again it is the same"


def test_an_archive_made_by_tar_itself_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for what in (["-C", str(folder), "."], ["-C", str(tmp_path), "out"]):
        subprocess.run(["tar", "-czf", str(tmp_path / "x.tgz"), *what], check=True)
        assert read_source(str(tmp_path / "x.tgz")).bundle == bundle_of(lab())


def test_a_folder_that_somebody_wrote_needs_no_sums(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "lab.yaml").write_text(TEXT)
    (tmp_path / "files/x").write_bytes(b"content\n" * 1000)
    (tmp_path / "README.md").symlink_to("/etc/shadow")  # beside the lab, and not looked at
    assert read_source(str(tmp_path)).bundle.lab == lab()


# -- hostile archives ----------------------------------------------------------------------------------------------------

HOSTILE = {
    "absolute": (entry("/etc/cron.d/x"), "absolute"),
    "up": (entry("../x"), "leads out"),
    "up inside": (entry("files/../../x"), "leads out"),
    "dot": (entry("files/./x"), "plain path"),
    "empty part": (entry("files//x"), "plain path"),
    "backslash": (entry("..\\x"), "can be shown"),
    "escape": (entry("\x1b[2Jx"), "can be shown"),
    "bidi": (entry("files/\u202etxt.sh"), "can be shown"),
    "newline": (entry("files/a\nb"), "can be shown"),
    "long": (entry("files/" + "x" * 300), "longer than"),
    "symlink out": (entry("files/x", tarfile.SYMTYPE, "/etc/shadow"), "symbolic link"),
    "symlink in": (entry("files/x", tarfile.SYMTYPE, "lab.yaml"), "symbolic link"),
    "symlink as folder": (entry("bases", tarfile.SYMTYPE, "/etc"), "symbolic link"),
    "hard link": (entry("files/x", tarfile.LNKTYPE, "lab.yaml"), "hard link"),
    "character device": (entry("files/x", tarfile.CHRTYPE), "device"),
    "block device": (entry("files/x", tarfile.BLKTYPE), "device"),
    "fifo": (entry("files/x", tarfile.FIFOTYPE), "named pipe"),
    "unknown kind": (entry("files/x", b"Z"), "something else"),
    "setuid": (entry("files/x", mode=0o4755), "set-uid"),
    "setgid": (entry("files/x", mode=0o2755), "set-gid"),
    "setuid folder": (entry("files/d", tarfile.DIRTYPE, mode=0o6755), "set-uid"),
    "large": (entry("files/x", size=(1 << 20) + 1), "at most 1 MiB"),
    "twice": (entry("lab.yaml"), "two of this name"),
    "other case": (entry("LAB.yaml"), "cannot lie beside"),
    "other case of a folder": (entry("Bases/x.yaml"), "cannot lie beside"),
    "other form": (entry("lab.\uff59aml"), "cannot lie beside"),
    "file as folder": (entry("lab.yaml/x"), "cannot lie beside"),
    "not listed": (entry("files/more"), "not listed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries_are_named_and_refused(tmp_path: Path, kind: str) -> None:
    info, said = HOSTILE[kind]
    shown = "".join(c if c.isprintable() else "?" for c in info.name)[:60]
    refused(packed(tmp_path, tar_of(info)), said, shown)


CHANGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "wrong sum": (lambda: tar_of(files=FILES | {"lab.yaml": FILES["lab.yaml"] + b"# x\n"}), "lab.yaml: not the file"),
    "missing": (lambda: tar_of(files={n: c for n, c in FILES.items() if n != LONG}), "missing, though"),
    "no sums": (lambda: tar_of(files={n: c for n, c in FILES.items() if n != "SHA256SUMS"}), "SHA256SUMS: missing"),
    "bad sums": (lambda: tar_of(files=FILES | {"SHA256SUMS": b"nonsense\n"}), "a line that is not a sum"),
    "sums twice": (lambda: tar_of(files=FILES | {"SHA256SUMS": FILES["SHA256SUMS"] * 2}), "a second one"),
    "no lab": (lambda: tar_of(files=resummed({n: c for n, c in FILES.items() if n != "lab.yaml"})), "lab.yaml: missing"),
    "no manifest": (lambda: tar_of(files=resummed({n: c for n, c in FILES.items() if "pocket" not in n})), "missing"),
    "other schema": (
        lambda: tar_of(
            files=resummed(
                FILES | {"pocketcloud-lab.json": FILES["pocketcloud-lab.json"].replace(b'"schema": 1', b'"schema": 99')}
            )
        ),
        "schema 99",
    ),
    "other lab": (
        lambda: tar_of(files=resummed(FILES | {"lab.yaml": FILES["lab.yaml"].replace(b"lab: course", b"lab: other")})),
        "speaks of lab course",
    ),
    "not a lab": (lambda: tar_of(files=resummed(FILES | {"lab.yaml": b"lab: [1]\n"})), "lab.yaml"),
    "not text": (lambda: tar_of(files=resummed(FILES | {"lab.yaml": b"\xff\xfe"})), "not UTF-8"),
    "bad base": (
        lambda: tar_of(files=resummed(FILES | {"bases/debian-12.yaml": b"base: x\n"})),
        "lab.tar.gz: bases/debian-12.yaml:",
    ),
    "bomb": (lambda: gzip.compress(bytes(200 << 20), 9), "unpacks to more"),
    "cut": (lambda: archive(FILES, "x")[:-400], "ends too early"),
    "more behind it": (lambda: archive(FILES, "x") + b"more", "more after its end"),
    "not gzip": (lambda: b"\x1f\x8b" + bytes(100), "damaged"),
    "other base than named": (
        lambda: tar_of(files=resummed(FILES | {"bases/debian-12.yaml": FILES["bases/debian-12.yaml"] + b"post: [touch /x]\n"})),
        "bases/debian-12.yaml: not the one that pocketcloud-lab.json names",
    ),
    "other template than named": (
        lambda: tar_of(files=resummed(INSTALLED | {"kickstarts/anaconda.sh.j2": b"evil\n"})),
        "kickstarts/anaconda.sh.j2: not the one that pocketcloud-lab.json names",
    ),
    "no template though named": (
        lambda: tar_of(files=resummed({n: c for n, c in INSTALLED.items() if n != "kickstarts/seal.sh.j2"})),
        "kickstarts/seal.sh.j2: missing, though pocketcloud-lab.json names it",
    ),
    "noise": (lambda: b"noise" * 300, "not an archive"),
    "zip": (lambda: b"PK\x03\x04" + bytes(600), "a .zip"),
    "empty": (lambda: b"", "not an archive"),
    "no entry": (lambda: tar_of(files={}), "SHA256SUMS: missing"),
    "many entries": (lambda: tar_of(*(entry(f"files/{n}") for n in range(2100)), files={}), "more than 2000"),
    "cut inside": (lambda: gzip.compress(gzip.decompress(tar_of())[:2000]), "archive"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_damaged_and_forged_archives_are_refused(tmp_path: Path, kind: str) -> None:
    make, said = CHANGED[kind]
    refused(packed(tmp_path, make()), said)


def test_a_chain_of_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    refused(packed(tmp_path, gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 5000)), "not an archive")


@pytest.mark.parametrize("wrong", ["link", "fifo", "setuid", "link on the way"])
def test_hostile_folders_are_refused(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "secret").write_text("hunter2")
    folder = tmp_path / "lab"
    (folder / "files").mkdir(parents=True)
    (folder / "lab.yaml").write_text(TEXT)
    target = folder / "files/x"
    match wrong:
        case "link":
            target.symlink_to("../../secret")
        case "fifo":
            os.mkfifo(target)
        case "setuid":
            target.write_text("x")
            target.chmod(0o4755)
        case _:
            (folder / "files").rmdir()
            (folder / "files").symlink_to("..")
    assert "hunter2" not in refused(str(folder), "files/x").message


def test_sources_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound, match="there is no"):
        read_source(str(tmp_path / "file/x"))
    assert "as root" not in refused(str(tmp_path / ("x" * 300)), "File name too long").hint


def as_anybody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Root, to whom folders of others are closed as to any user."""
    argv = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "pocketcloud", *arguments]
    return subprocess.run(argv, cwd=shipped(), capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_folders_of_others_are_told(tmp_path: Path) -> None:
    closed = tmp_path / "lab/closed"
    closed.mkdir(parents=True)
    os.chown(closed, 1234, 1234)
    closed.chmod(0o700)
    for source, said in ((tmp_path / "lab", "lab: closed cannot be read: Permission denied"), (closed / "x", "cannot be read")):
        done = as_anybody("lab", "import", "--dry-run", str(source))
        assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
        assert said in done.stderr
        assert "next:  run the command as root" in done.stderr
    for target in ("x", "x.tar.gz"):
        done = as_anybody("lab", "export", "demo", str(closed / target))
        assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr


# -- what it is called, and what its bases are ---------------------------------------------------------------------------


def test_the_same_again_is_success_and_another_is_refused(kit: Kit) -> None:
    assert keep(kit, Name("course"), bundle_of(lab()))
    assert not keep(kit, Name("course"), bundle_of(lab()))
    other = bundle_of(lab(TEXT.replace("'true'}", "'false'}")))
    with pytest.raises(Refused, match="another lab imported as course") as caught:
        keep(kit, Name("course"), other)
    assert "--as" in caught.value.hint
    assert load_lab(lab_file(kit.path, "course")) == lab()
    assert keep(kit, Name("course-2"), other)
    assert imported_labs(kit.path) == ("course", "course-2")


def test_what_an_interrupted_import_left_is_swept(kit: Kit) -> None:
    left = kit.path / "definitions/labs/.course.0123.aside/bases"
    left.mkdir(parents=True)
    assert imported_labs(kit.path) == ()
    assert base_folders(kit.path) == ()
    keep(kit, Name("course"), bundle_of(lab()))
    assert sorted(p.name for p in (kit.path / "definitions/labs").iterdir()) == ["course"]


def test_a_shipped_name_means_what_it_meant(kit: Kit) -> None:
    demo = load_lab(shipped("labs", "demo.yaml"))
    check_name(kit, Name("demo"), demo)
    with pytest.raises(Refused, match="pocketcloud ships"):
        check_name(kit, Name("demo"), lab())


def with_base(tmp_path: Path, name: str, text: str, templates: Mapping[str, str] | None = None) -> Candidate:
    folder = tmp_path / f"src-{name}-{len(text)}"
    (folder / "bases").mkdir(parents=True)
    (folder / "lab.yaml").write_text(TEXT.replace("debian-12", name).replace("from: files/x", "content: x"))
    (folder / f"bases/{name}.yaml").write_text(text)
    for template, content in (templates or {}).items():
        (folder / "kickstarts").mkdir(exist_ok=True)
        (folder / "kickstarts" / template).write_text(content)
    return read_source(str(folder))


def test_bases_that_come_along(tmp_path: Path, kit: Kit, know_imported: Callable[[], None]) -> None:
    ours = shipped("bases", "debian-12.yaml").read_text()
    assert with_base(tmp_path, "debian-12", ours + "# a comment\n").bases[0].standing is Standing.KNOWN
    assert with_base(tmp_path, "debian-12", ours + "post: [touch /evil]\n").bases[0].standing is Standing.OTHER
    first = with_base(tmp_path, "mine", OWN)
    assert [(b.name, b.standing) for b in first.bases] == [("mine", Standing.NEW)]
    keep(kit, Name("one"), first.bundle)
    know_imported()
    assert with_base(tmp_path / "again", "mine", OWN).bases[0].standing is Standing.KNOWN
    with pytest.raises(Refused, match="base mine: lab one, imported before"):
        with_base(tmp_path, "mine", OWN.replace("touch", "rm"))
    # What was imported never stands in place of what is shipped.
    keep(kit, Name("two"), with_base(tmp_path / "third", "debian-12", ours + "post: [touch /evil]\n").bundle)
    know_imported()
    assert read_source(str(lab_file(kit.path, "two").parent)).bases[0].standing is Standing.OTHER
    assert b"evil" not in bundle_of(lab()).bases[Name("debian-12")]


def test_templates_of_a_base_are_those_that_were_shown(tmp_path: Path, kit: Kit, know_imported: Callable[[], None]) -> None:
    """Whichever of two labs comes first by its name: what a base is installed by is what was shown when it came."""
    text = shipped("bases", "fedora-44.yaml").read_text().replace("base: fedora-44", "base: mine")
    script = {"anaconda.sh.j2": "echo mine\n"}
    keep(kit, Name("two"), with_base(tmp_path, "mine", text, script).bundle)
    know_imported()
    assert with_base(tmp_path / "same", "mine", text, script).bases[0].standing is Standing.KNOWN
    for number, other in enumerate(({"anaconda.sh.j2": "echo evil\n"}, {}, None)):
        with pytest.raises(Refused, match="base mine: lab two, imported before, has other templates for its installer"):
            with_base(tmp_path / f"other{number}", "mine", text, other)


def test_what_a_layer_stands_on_is_told_where_it_is_missing(tmp_path: Path) -> None:
    found = with_base(tmp_path, "mine", OWN.replace("debian-12", "nowhere"))
    assert [(b.name, b.standing) for b in found.bases] == [("mine", Standing.NEW), ("nowhere", Standing.NONE)]


def test_a_base_that_nobody_defines_is_told(tmp_path: Path) -> None:
    bundle = Bundle(parse_lab("lab: x\nmachines: {a: {base: appliance, ready: {console: x}}}\n", "f"))
    found = read_source(packed(tmp_path, archive(contents(bundle), "x")))
    assert [(b.name, b.standing) for b in found.bases] == [("appliance", Standing.NONE)]


# -- git -----------------------------------------------------------------------------------------------------------------


def git(*words: str, cwd: Path) -> str:
    env = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(cwd)}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *who, *words], cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with a lab at its top and one in a folder, and a work tree beside it."""
    work = tmp_path / "work"
    (work / "labs/course/files").mkdir(parents=True)
    git("init", "-q", "-b", "main", ".", cwd=work)
    for folder in (work, work / "labs/course"):
        (folder / "lab.yaml").write_text(TEXT)
        (folder / "files").mkdir(exist_ok=True)
        (folder / "files/x").write_bytes(b"content\n" * 1000)
    git("add", ".", cwd=work)
    git("commit", "-qm", "one", cwd=work)
    git("clone", "-q", "--bare", str(work), str(tmp_path / "bare.git"), cwd=tmp_path)
    git("remote", "add", "bare", str(tmp_path / "bare.git"), cwd=work)
    return tmp_path / "bare.git"


def pushed(repository: Path, message: str) -> None:
    work = repository.parent / "work"
    git("add", "-A", cwd=work)
    git("commit", "-qm", message, cwd=work)
    git("push", "-q", "bare", "main", cwd=work)


def test_a_lab_from_git(repository: Path) -> None:
    head = git("rev-parse", "main", cwd=repository)
    for place in ("", "#main", "#main:labs/course", "#:labs/course"):
        found = read_source(f"file://{repository}{place}")
        assert (found.bundle.lab, found.commit) == (lab(), head)
    with pytest.raises(NotFound, match="no folder 'labs/none'"):
        read_source(f"file://{repository}#main:labs/none")
    with pytest.raises(Refused, match="cannot be fetched"):
        read_source(f"file://{repository}#nobranch")
    with pytest.raises(Refused, match="cannot be fetched"):
        read_source(f"file://{repository}-none")


def test_bytes_from_git_are_those_committed(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its attributes ask for, and whatever filters the user has."""
    work = tmp_path / "work"
    (work / ".gitattributes").write_text(
        "[attr]odd filter=smudged\n* odd\nfiles/x ident text eol=crlf export-subst\nlab.yaml working-tree-encoding=UTF-16\n"
    )
    (work / "files/x").write_bytes(b"$Id$ $Format:%H$\n")
    (work / "lab.yaml").write_text(TEXT)
    for path in (".gitattributes", "files/x", "lab.yaml"):
        blob = git("hash-object", "-w", "--no-filters", path, cwd=work)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", cwd=work)
    git("commit", "-qm", "odd", cwd=work)
    git("push", "-q", "bare", "main", cwd=work)
    marker = tmp_path / "was-here"
    (tmp_path / ".gitconfig").write_text(
        f'[filter "smudged"]\n\tsmudge = touch {marker}; tr a b\n\trequired\n[core]\n\tautocrlf = true\n[tar]\n\tumask = 0777\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    step = read_source(f"file://{repository}").bundle.lab.machines[Name("a")].provision[0]
    assert step.content == "$Id$ $Format:%H$\n"
    assert not marker.exists()


def test_an_exported_lab_may_lie_in_git_with_other_files(repository: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name, content in {f"given/{name}": content for name, content in FILES.items()}.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    (work / "given/README.md").write_text("a lab\n")
    (work / "given/bases/more.yaml").write_text("base: more\n")
    (work / "lab.yaml").unlink()
    pushed(repository, "given")
    assert read_source(f"file://{repository}#:given").bundle == bundle_of(lab())
    assert "#REF:FOLDER" in refused(f"file://{repository}", "lab.yaml: missing", "given/lab.yaml").hint
    (work / "given/noise").write_bytes(os.urandom(17 << 20))
    pushed(repository, "large")
    assert "URL#REF:FOLDER" in refused(f"file://{repository}", "more than 16 MiB").hint


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a repository to another user")
def test_a_repository_of_who_ran_sudo_is_taken(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (repository, *repository.rglob("*")):
        os.chown(path, 1234, 1234)
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert "safe.directory" in refused(f"file://{repository}", "dubious ownership").hint
    monkeypatch.setenv("SUDO_UID", "1234")
    assert read_source(f"file://{repository}").bundle.lab == lab()


def test_git_is_bounded_in_all_it_does(repository: Path) -> None:
    seen: list[list[str]] = []

    def watched(argv: Sequence[str | Path], **options: Any) -> Completed:
        seen.append([str(word) for word in argv])
        return run(argv, **options)

    git_tree(parse_address(f"file://{repository}"), run=watched)
    assert len(seen) >= 4
    assert {tuple(argv[:5]) for argv in seen} == {("prlimit", f"--fsize={256 << 20}", f"--as={2 << 30}", "--", "git")}


def test_a_malicious_repository_does_nothing(repository: Path, tmp_path: Path) -> None:
    work, marker = tmp_path / "work", tmp_path / "was-here"
    for hooks in (repository / "hooks", work / "hooks", work / ".githooks"):
        hooks.mkdir(exist_ok=True)
        for hook in ("post-checkout", "post-merge", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman"):
            (hooks / hook).write_text(f"#!/bin/sh\ntouch {marker}\n")
            (hooks / hook).chmod(0o755)
    (work / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (work / ".gitmodules").write_text(
        f'[submodule "s"]\n\tpath = s\n\turl = ext::sh -c touch% {marker}\n\tupdate = !touch {marker}\n'
    )
    (work / ".lfsconfig").write_text("[lfs]\n\turl = file:///\n")
    (work / "link").symlink_to("/etc/shadow")
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},s", cwd=work)
    pushed(repository, "evil")
    marker.unlink(missing_ok=True)
    assert read_source(f"file://{repository}").bundle.lab == lab(), "what is beside the lab is left alone"
    assert not marker.exists()
    # In the lab's own way it is refused.
    (work / "files/x").unlink()
    (work / "files/x").symlink_to("/etc/shadow")
    pushed(repository, "link")
    marker.unlink(missing_ok=True)
    refused(f"file://{repository}", "files/x", "symbolic link")
    assert not marker.exists()


@pytest.mark.parametrize(
    "source",
    [
        "ext::sh -c touch% /tmp/x",
        "ext::ssh://x",
        "fd::17",
        "http://example.org/x.git",
        "git://example.org/x",
        "ftp://example.org/x",
        "https::ext://x",
        "file://a b",
        "https://example.org/x#-evil",
        "https://example.org/x#a..b",
        "https://example.org/x#main:/etc",
        "https://example.org/x#main:../x",
        "https://example.org/x#main:-x",
    ],
)
def test_addresses_that_are_not_taken(source: str) -> None:
    with pytest.raises(UsageError):
        read_source(source)


def test_addresses_are_taken_apart() -> None:
    found = parse_address("https://me:hunter2@example.org/x.git#v1.0:labs/a")
    assert (found.url, found.ref, found.folder) == ("https://me:hunter2@example.org/x.git", "v1.0", "labs/a")
    assert "hunter2" not in found.shown
    assert parse_address("git@example.org:team/labs.git").url == "git@example.org:team/labs.git"
