"""The cache in a kit: contents stored by their SHA-256, and collections that say under which addresses they are known.

`media/cache/` has `wishes.json` (what is to be kept), `objects/` (contents, each named by its sum, so that a name from outside
never becomes a path), `sets/` (a collection a file, replaced whole: the one commit point of a sync), and `work/` (what is being
fetched). A content that no collection names is a leftover. Nothing here fetches.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, NoSpace, Refused
from pocketcloud.files import remove_tree, write_whole
from pocketcloud.model.cache import CACHE_SCHEMA, Collection, Kind, Stored, Wish, Wishes
from pocketcloud.model.kit import Kit
from pocketcloud.system import Runner, run

_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def folder_of(kit: Kit) -> Path:
    """Where the kit's cache lies: on a kit on a disk in the volume for what is large."""
    return kit.path / "media" / "cache"


def id_of(wish: Wish) -> str:
    """The file name of the wish's collection, without its ending."""
    if wish.kind is Kind.BASE:
        return f"base.{wish.name}.{wish.arch}"
    digest = hashlib.blake2b("\0".join(wish.key).encode(), digest_size=8).hexdigest()
    return f"{wish.kind}.{digest}"


class Store:
    """The cache in `folder`; it need not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sets = folder / "sets"
        self.objects = folder / "objects"

    def make(self) -> None:
        """Make the folders. Others may read: the server runs as nobody."""
        for path in (self.folder, self.sets, self.objects, self.folder / "work"):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.chmod(0o755 if path.name != "work" else 0o711)

    # -- wishes

    def wishes(self) -> tuple[Wish, ...]:
        """What is to be kept. Raises Refused where that cannot be read."""
        path = self.folder / "wishes.json"
        try:
            found = parse_json(path.read_bytes().decode(errors="replace"), Wishes, str(path))
        except FileNotFoundError:
            return ()
        except BadDocument as error:
            raise Refused(
                f"what the cache is to keep cannot be read: {error.message.splitlines()[0]}",
                hint=f"remove {path} and say it again with pocketcloud cache add; what is stored stays",
            ) from error
        if found.schema != CACHE_SCHEMA:
            raise Refused(f"{path} has schema {found.schema}, this pocketcloud knows {CACHE_SCHEMA}", hint="use the newer one")
        return found.wishes

    def wish(self, *wishes: Wish) -> None:
        """Make `wishes` all that is to be kept."""
        self.make()
        write_whole(self.folder / "wishes.json", dump_json(Wishes(CACHE_SCHEMA, wishes)))

    # -- collections

    def collection(self, name: str) -> Collection | None:
        """The collection of that id; None if there is none, or none that can be read: it is fetched anew then."""
        try:
            text = (self.sets / f"{name}.json").read_bytes().decode(errors="replace")
            found = parse_json(text, Collection, name)
        except (OSError, BadDocument):
            return None
        return found if found.schema == CACHE_SCHEMA else None

    def collections(self) -> dict[str, Collection]:
        """All collections that can be read, by id."""
        names = sorted(path.stem for path in self.sets.glob("*.json") if not path.name.startswith("."))
        return {name: found for name in names if (found := self.collection(name)) is not None}

    def publish(self, name: str, collection: Collection, run: Runner = run) -> None:
        """Put a collection in the place of the one before it. All contents are on the disk by then."""
        run(["sync", "-f", "--", self.objects])
        write_whole(self.sets / f"{name}.json", dump_json(collection))

    def withdraw(self, name: str) -> None:
        """Remove a collection; its contents stay until they are swept."""
        (self.sets / f"{name}.json").unlink(missing_ok=True)
        remove_tree(self.work(name))

    # -- contents

    def work(self, name: str) -> Path:
        """The folder in which a collection's files are fetched; it is kept after an interruption."""
        return self.folder / "work" / name

    def path(self, sha256: str) -> Path:
        """Where a content lies, or would."""
        return self.objects / sha256[:2] / sha256

    def open(self, stored: Stored) -> BufferedReader | None:
        """The content, if it is there in its full size; links are not followed."""
        try:
            handle = os.open(self.path(stored.sha256), _READ_ONLY)
        except OSError:
            return None
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != stored.size:
            os.close(handle)
            return None
        return os.fdopen(handle, "rb")

    def has(self, stored: Stored) -> bool:
        """Whether the content is there in its full size; `is_whole` also reads it."""
        file = self.open(stored)
        if file is None:
            return False
        file.close()
        return True

    def is_whole(self, stored: Stored) -> bool:
        """Whether the content is there and is what its name says; all of it is read."""
        file = self.open(stored)
        if file is None:
            return False
        with file:
            try:
                return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256
            except OSError:  # a disk that cannot read it
                return False

    def adopt(self, path: Path) -> Stored:
        """Move a finished file into the store. It may have been written by a user nobody is, so its owner and mode are ours
        afterwards. Raises Refused if it is no regular file, NoSpace."""
        try:
            handle = os.open(path, _READ_ONLY | os.O_NONBLOCK)
        except OSError as error:
            raise Refused(f"{path} cannot be taken into the cache: {error.strerror}") from None
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise Refused(f"{path} cannot be taken into the cache: it is no file")
            stored = Stored(hashlib.file_digest(file, "sha256").hexdigest(), found.st_size)
            target = self.path(stored.sha256)
            try:
                target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                os.fchmod(handle, 0o644)
                if os.geteuid() == 0:
                    os.fchown(handle, 0, 0)
                path.replace(target)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpace(f"{target.parent}: no space left on its file system", hint="pocketcloud cache prune") from error
                raise
        return stored

    def discard(self, stored: Stored) -> None:
        """Remove a content that is not what its name says; absent is success."""
        self.path(stored.sha256).unlink(missing_ok=True)

    def damaged(self, collection: Collection, tell: Callable[[int], None] = lambda _: None) -> tuple[str, ...]:
        """The keys of a collection's files that are missing or damaged. Reads all of them; `tell` gets the bytes read so far."""
        states: dict[str, bool] = {}
        done, found = 0, []
        for key, stored in collection.files.items():
            if stored.sha256 not in states:
                states[stored.sha256] = self.is_whole(stored)
                done += stored.size
                tell(done)
            if not states[stored.sha256]:
                found.append(key)
        return tuple(found)

    def missing(self, collection: Collection) -> tuple[str, ...]:
        """The keys of a collection's files that are not there in their full size. Reads nothing."""
        return tuple(key for key, stored in collection.files.items() if not self.has(stored))

    def known(self, collection: Collection | None) -> Mapping[str, Stored]:
        """What of a collection is there and whole; damaged contents are removed, so that they are fetched again."""
        if collection is None:
            return {}
        bad = set(self.damaged(collection))
        for key in bad:
            self.discard(collection.files[key])
        return {key: stored for key, stored in collection.files.items() if key not in bad}

    def leftovers(self) -> Iterator[Path]:
        """Contents that no collection names, and what was being fetched for wishes that are no more."""
        named = {stored.sha256 for collection in self.collections().values() for stored in collection.files.values()}
        for path in self.objects.glob("*/*"):
            if path.name not in named:
                yield path
        wanted = {id_of(wish) for wish in self.wishes()}
        for path in (self.folder / "work").glob("*"):
            if path.name not in wanted:
                yield path
