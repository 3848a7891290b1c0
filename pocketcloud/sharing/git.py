"""Labs in git repositories: one commit is fetched without its history, and read out of git's own store.

Nothing is checked out, so that no hook, link or submodule of the repository ever does anything; what its attributes ask for
(filters, line ends, other bytes than are committed) is switched off by attributes that go before them; and nothing but https, ssh
and files is spoken. Sources: git-config(1) on protocol.allow, git-fetch(1), git-archive(1), gitattributes(5).
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.downloads import shown
from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError
from pocketcloud.model.sizes import GIB, MIB
from pocketcloud.sharing.reading import Tree, archive_tree
from pocketcloud.sharing.reading import shown as shown_line
from pocketcloud.system import CommandFailed, Runner, run, which

_SCHEMES = ("https", "ssh", "file")
# user@host:path, as git and ssh write it.
_SHORT = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9][A-Za-z0-9.-]*:[^:].*")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_SECONDS = 300.0
_BOUNDS = ("prlimit", f"--fsize={256 * MIB}", f"--as={2 * GIB}", "--")
_SAFE = (
    "-c", "protocol.allow=never",
    *(word for scheme in _SCHEMES for word in ("-c", f"protocol.{scheme}.allow=always")),
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "fetch.recurseSubmodules=false",
    "-c", "submodule.recurse=false",
    "-c", "pack.threads=1",
)  # fmt: skip
_AS_COMMITTED = "* -text -ident -export-ignore -export-subst !eol !filter !working-tree-encoding\n"
# Nobody is there to be asked: git runs in a group of processes that the terminal is not given to.
_ENV = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "GIT_LFS_SKIP_SMUDGE": "1"}
_NO_CONFIG = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a lab lies in git: the repository, what of it (`ref`, empty: its default branch), and the folder in it."""

    url: str
    ref: str = ""
    folder: str = ""

    @property
    def shown(self) -> str:
        """It for people, without a password."""
        return shown(self.url) if "://" in self.url else self.url


def is_address(text: str) -> bool:
    """Whether a source is meant for git, well formed or not."""
    return "://" in text or "::" in text or _SHORT.fullmatch(text.partition("#")[0]) is not None


def parse_address(text: str) -> Address:
    """`URL`, `URL#REF`, `URL#REF:FOLDER` or `URL#:FOLDER`. Raises UsageError for anything but https, ssh and file."""
    url, _, rest = text.partition("#")
    ref, _, folder = rest.partition(":")
    scheme = url.partition("://")[0] if "://" in url else "ssh" if _SHORT.fullmatch(url) else ""
    if scheme not in _SCHEMES or "::" in url.partition("://")[0] or not url.isprintable() or " " in url:
        raise UsageError(
            f"{Address(url).shown if scheme else url[:80]!r} is not an address that labs are taken from",
            hint="https://, ssh://, file:// or user@host:path; behind it #REF or #REF:FOLDER",
        )
    if (ref and not _REF.fullmatch(ref)) or ".." in ref:
        raise UsageError(f"{ref[:80]!r} is not a branch, tag or commit", hint="URL#REF:FOLDER; either may be left out")
    if folder and (folder.startswith(("/", "-")) or ".." in folder.split("/") or not folder.isprintable()):
        raise UsageError(f"{folder[:80]!r} is not a folder of a repository", hint="URL#REF:FOLDER, as #main:labs/ceph")
    return Address(url, ref, folder.strip("/"))


def git_tree(address: Address, *, run: Runner = run) -> tuple[Tree, str]:
    """The files of the commit, and its name (hex). Raises HostLacks without git, NotFound for what is not there, Refused for what
    cannot be fetched or is too large."""
    if which("git") is None:
        raise HostLacks("git is not installed", hint="pocketcloud check names the package for this distribution")
    with tempfile.TemporaryDirectory(prefix="pocketcloud-git-") as place:
        work = Path(place)
        store, packed = work / "store", work / "tree.tar"
        git = [*_BOUNDS, "git", *_SAFE, "-C", str(store)]
        # By it git knows whom root works for, whose repositories it takes then.
        env = _ENV | {name: os.environ[name] for name in ("SUDO_UID",) if name in os.environ}
        store.mkdir()
        try:
            run([*git, "init", "--quiet", "--bare", "--template=", "."], env=env)
            wanted = [address.url, address.ref or "HEAD"]
            fetch = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-commit-graph"]
            run([*git, *fetch, "--", *wanted], env=env, timeout=_SECONDS)
            commit = run([*git, "rev-parse", "--verify", "FETCH_HEAD^{commit}"], env=env).out.strip()
        except CommandFailed as failed:
            reason = _complaint(failed)
            raise Refused(f"{address.shown} cannot be fetched: {reason}", hint=_hint(address, reason)) from None
        tree = f"{commit}:{address.folder}" if address.folder else commit
        if run([*git, "cat-file", "-t", tree], env=env, codes=(0, 128)).out.strip() not in ("tree", "commit"):
            raise NotFound(f"{address.shown} has no folder {address.folder!r} at {commit[:12]}", hint="URL#REF:FOLDER names one")
        (store / "info").mkdir(exist_ok=True)
        (store / "info/attributes").write_text(_AS_COMMITTED)
        try:
            run([*git, "archive", "--format=tar", f"--output={packed}", tree], env=env | _NO_CONFIG, timeout=_SECONDS)
        except CommandFailed as failed:
            raise Refused(
                f"{address.shown} cannot be read: {_complaint(failed)}", hint="name the lab's own folder: URL#REF:FOLDER"
            ) from None
        return archive_tree(packed, address.shown, strict=False), commit


def _complaint(failed: CommandFailed) -> str:
    """Why git failed: its first complaint and what was said before it, by ssh or the other side. What follows is advice."""
    said = [line.strip() for line in (failed.completed.err or failed.completed.out).splitlines() if line.strip()]
    first = next((number for number, line in enumerate(said) if line.startswith(("fatal:", "error:"))), len(said) - 1)
    return " / ".join(map(shown_line, said[max(0, first - 1) : first + 1])) or f"git ended with {failed.completed.code}"


def _hint(address: Address, reason: str) -> str:
    if "dubious ownership" in reason:
        path = address.url.removeprefix("file://")
        return f"it is another user's: run the command by sudo as them, or: git config --global --add safe.directory {path}"
    if "publickey" in reason or "Host key verification failed" in reason:
        return "root's own ssh keys and known hosts are used; or git clone it as yourself, and import the folder"
    return "try the same with git itself: does it ask anything?"
