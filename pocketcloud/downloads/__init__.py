"""The downloads room: files from elsewhere, fetched once into a folder, verified before anybody uses them.

`fetch` is the door. In the folder lie `KEY-NAME`, verified (KEY: the first digits of its SHA-256), `index/ID.json`, what is
known of the file at a URL, so that a computer without a network finds it, and `.ID.part` with `.ID.json`, what has come of a
file so far. A `.part` is locked (flock) by who fetches it. Nothing else in the folder is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import unquote, urlsplit

from pocketcloud.disk_space import spare
from pocketcloud.documents import dump_json, parse_json
from pocketcloud.downloads.signatures import check_clearsigned, check_detached, is_clearsigned
from pocketcloud.downloads.sums import NoSum, Sum, sum_of
from pocketcloud.downloads.transfer import FULL, Patience, Validators, changed, check_url, fetch_file, fetch_small, shown
from pocketcloud.errors import BadDocument, HostLacks, NoSpace, NotFound, Refused, UsageError
from pocketcloud.files import sync_folder, write_whole
from pocketcloud.model.base import Download
from pocketcloud.model.sizes import MIB, size_text
from pocketcloud.system import Runner, run

__all__ = ["Fetched", "Patience", "Tell", "fetch", "have", "shown"]

Tell = Callable[[str, float], None]
"""Gets a text for people, and the fraction done of the whole fetch, 0 to 1."""

_VERIFYING = 0.9
"""How much of a fetch the transfer takes; the rest goes into reading it again for its checksum."""
_KEY = 16
_LONGEST = 120
_PIECE = 4 * MIB
_PART_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified file: where it is, its SHA-256 (hex), its size in bytes, and the fingerprint of the key that signed for it
    (empty: nobody did)."""

    path: Path
    sha256: str
    size: int
    signer: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the index says of the file at a URL. `verified` is what it was verified by, as `_claims` says it; `sum` what a list
    had for it (`sha512:HEX`); `stamp` the file's time of change in nanoseconds when its checksum was taken."""

    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}

    file: str
    sha256: str
    size: int
    stamp: int
    verified: str
    sum: str = ""
    signer: str = ""
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class _Begun:
    """Of which file a `.part` is."""

    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}

    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the file must be: its checksums, and the signature that must be on it (None: there is only that on the list, by
    `signer`)."""

    sums: tuple[Sum, ...]
    signature: bytes | None = None
    signer: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `fetch`."""

    download: Download
    into: Path
    tell: Tell
    patience: Patience
    run: Runner

    @property
    def id(self) -> str:
        return hashlib.sha256(self.download.url.encode()).hexdigest()[:_KEY]

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return _file_name(self.download.url or self.download.file)

    @property
    def part(self) -> Path:
        return self.into / f".{self.id}.part"

    @property
    def begun(self) -> Path:
        return self.into / f".{self.id}.json"

    @property
    def index(self) -> Path:
        return self.into / "index" / f"{self.id}.json"


def fetch(
    download: Download,
    into: Path,
    *,
    tell: Tell = lambda _text, _fraction: None,
    offline: bool = False,
    patience: Patience | None = None,
    run: Runner = run,
) -> Fetched:
    """The verified file, fetched into the folder `into` unless it is there already; a `file:` of this host stays where it is.

    All that `download` says is verified: its `sha256`, the entry in its list of sums, and the signature, of the list (detached
    or in it) or of the file. A URL needs one of them; a list without a signature is only taken over TLS. What is there by the
    same claims is not fetched again; unpinned ones (no `sha256`) are looked up at the server, and taken as they are where it does
    not answer or `offline` holds. `sums` and `signature` may be paths of this host. `tell` is called from this thread.

    Ctrl-C and kill leave what came, and the next call goes on with it. Raises UsageError for a download that cannot be meant,
    Refused for a file that is not the right one (it is gone then), NotFound, HostLacks (for a disk that fails, too), NoSpace.
    """
    job = _Job(download, into, tell, patience or Patience(), run)
    _check(job)
    with _disk(Path(download.file) if download.file else job.part):
        return _fetch(job, offline=offline)


def _fetch(job: _Job, *, offline: bool) -> Fetched:
    download, into = job.download, job.into
    if download.file:
        return _local(job)
    into.mkdir(mode=0o755, parents=True, exist_ok=True)
    if found := have(download, into):
        return found
    known = _read_known(job.index)
    usable = known if known is not None and known.verified == _claims(download) and _intact(into, job.index, known) else None
    if offline:
        if usable is None:
            raise HostLacks(
                f"{job.name} is not in {into}, and nothing may be fetched: offline",
                hint="fetch it where there is a network (the same command there), or leave out --offline",
            )
        return _fetched(into, usable)
    try:
        expected = _expected(job)
        if usable is not None and _still(job, usable, expected):
            return _fetched(into, usable)
    except HostLacks as error:
        if usable is None:
            raise
        job.tell(f"{job.name}: taken as it is here ({error.message})", _VERIFYING)
        return _fetched(into, usable)
    with _held(job) as part:
        if found := have(download, into):  # another process was quicker
            part.truncate(0)
            return found
        return _transferred(job, expected, part)


def have(download: Download, into: Path) -> Fetched | None:
    """The verified file if it is pinned by its `sha256` and there already, from whatever URL, verified by all that `download`
    says. Asks no network."""
    if not download.sha256:
        return None
    claims = _claims(download)
    for path in sorted((into / "index").glob("*.json")):
        known = _read_known(path)
        if known is not None and (known.sha256, known.verified) == (download.sha256, claims) and _intact(into, path, known):
            return _fetched(into, known)
    return None


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Raise HostLacks or NoSpace for what a disk does; `path` is what is read or written where the error names nothing."""
    try:
        yield
    except BrokenPipeError:  # of the terminal, by way of `tell`
        raise
    except OSError as error:
        place, why = error.filename or path, error.strerror or str(error)
        if error.errno in FULL:
            raise NoSpace(f"{place}: {why}", hint="remove what is not needed, then run again") from error
        hint = "run it with sudo, or as who may" if isinstance(error, PermissionError) else "is its disk whole? See dmesg"
        raise HostLacks(f"{place} cannot be read or written: {why}", hint=hint) from error


def _check(job: _Job) -> None:
    """Raise UsageError for a download that cannot be meant."""
    download = job.download
    for url in (download.url, *(place for place in (download.sums, download.signature) if not place.startswith("/"))):
        if url:
            check_url(url, job.name)
    if download.url and not (download.sha256 or download.sums or download.signature):
        raise UsageError(
            f"{job.name}: nothing says whether what comes from {shown(download.url)} is the right file",
            hint="give its `sha256:`, or `sums:`, or `signature:` with `keyring:`",
        )
    if download.keyring and not (download.sums or download.signature):
        raise UsageError(
            f"{job.name}: `keyring:` is there, and no signature", hint="give `signature:`, or `sums:` that are signed"
        )


def _claims(download: Download) -> str:
    """What a file is verified by, as text; a change of it makes the verification void."""
    claims = (download.sha256, download.sums, download.signature, download.keyring)
    return hashlib.sha256("\0".join(claims).encode()).hexdigest()


def _file_name(place: str) -> str:
    """The last part of a URL or path, of characters that any file system takes."""
    last = unquote(urlsplit(place).path).rstrip("/").rpartition("/")[2]
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-+") else "_" for letter in last)
    return kept.lstrip(".")[-_LONGEST:] or "file"


# -- what must it be --------------------------------------------------------------------------------------------------


def _expected(job: _Job) -> _Expected:
    """Fetch what vouches for the file, and check that itself."""
    download = job.download
    pinned = (Sum("sha256", download.sha256),) if download.sha256 else ()
    apart = download.signature and download.signature != download.sums  # a list that is named as both carries its own
    signature = _voucher(job, download.signature, f"the signature of {job.name}") if apart else None
    if not download.sums:
        return _Expected(pinned, signature)
    what = f"the list of sums for {job.name}"
    listed = _voucher(job, download.sums, what, trusted=bool(download.keyring or download.sha256))
    signer = ""
    if signature is not None:
        signer = check_detached(listed, signature, Path(download.keyring), what, job.run)
    elif download.keyring:
        if not is_clearsigned(listed):
            raise Refused(f"{what} is not signed, and `keyring:` says that it is", hint="name its `signature:`, or another list")
        signer, listed = check_clearsigned(listed, Path(download.keyring), what, job.run)
    try:
        found = sum_of(listed.decode(errors="replace"), download.url or download.file, download.sums)
    except NoSum as error:
        raise NotFound(f"{what} does not help: {error}", hint=f"look into {shown(download.sums)}") from None
    return _Expected((*pinned, found), None, signer)


def _voucher(job: _Job, place: str, what: str, *, trusted: bool = True) -> bytes:
    """A list or a signature; one that nothing else vouches for (not `trusted`) only comes over TLS, or from this host."""
    job.tell(f"fetching {what}", 0.0)
    if place.startswith("/"):
        try:
            return Path(place).read_bytes()
        except OSError as error:
            raise NotFound(
                f"{what} cannot be read: {place}: {error.strerror}", hint="give the path of an existing file"
            ) from error
    return fetch_small(place, what, job.patience, encrypted=not trusted)


def _verify(job: _Job, path: Path, expected: _Expected) -> tuple[str, str]:
    """Check the file against all that is expected of it; return its SHA-256 and who signed."""
    begin = 0.0 if job.download.file else _VERIFYING
    algorithms = {"sha256", *(wanted.algorithm for wanted in expected.sums)}
    found = _digests(path, algorithms, lambda share: job.tell(f"verifying {job.name}", begin + (1 - begin) * share))
    for wanted in expected.sums:
        if found[wanted.algorithm] != wanted.hexadecimal:
            said = f"{wanted.algorithm} {found[wanted.algorithm]}, and not {wanted.hexadecimal}"
            raise Refused(
                f"{job.name} is not the right file: {said}",
                hint="it is not used. If a newer one has taken its place, note that one's sum; else fetch it from elsewhere",
            )
    signer = expected.signer
    if expected.signature is not None:
        signer = check_detached(path, expected.signature, Path(job.download.keyring), job.name, job.run)
    return found["sha256"], signer


def _digests(path: Path, algorithms: set[str], tell: Callable[[float], None] = lambda _share: None) -> dict[str, str]:
    digests = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    with _disk(path), path.open("rb", buffering=0) as file:
        size, done = os.fstat(file.fileno()).st_size, 0
        while piece := file.read(_PIECE):
            for digest in digests.values():
                digest.update(piece)
            done += len(piece)
            tell(done / max(size, done))
    return {algorithm: digest.hexdigest() for algorithm, digest in digests.items()}


def _local(job: _Job) -> Fetched:
    """A file of this host: verified where it lies."""
    path = Path(job.download.file)
    if not path.is_file():
        raise NotFound(f"{path}: no such file", hint="give the path of an existing file")
    sha256, signer = _verify(job, path, _expected(job))
    return Fetched(path.resolve(), sha256, path.stat().st_size, signer)


# -- what is there already --------------------------------------------------------------------------------------------


def _read_known(index: Path) -> _Known | None:
    try:
        return parse_json(index.read_text(encoding="utf-8"), _Known, str(index))
    except (OSError, BadDocument, UnicodeDecodeError):
        return None


def _intact(into: Path, index: Path, known: _Known) -> bool:
    """Whether the file is there as it was verified: unchanged since, or (a copied kit has other times) by its checksum."""
    path = into / Path(known.file).name
    try:
        told = path.stat()
    except OSError:
        return False
    if told.st_size != known.size:
        return False
    if told.st_mtime_ns == known.stamp:
        return True
    if _digests(path, {"sha256"})["sha256"] != known.sha256:
        return False
    with contextlib.suppress(OSError, NoSpace):  # then it is read again the next time
        write_whole(index, dump_json(replace(known, stamp=told.st_mtime_ns)))
    return True


def _still(job: _Job, known: _Known, expected: _Expected) -> bool:
    """Whether what is here is still what the server has, as far as its list or the server itself says."""
    if expected.sums:
        return all(f"{found.algorithm}:{found.hexadecimal}" in (known.sum, f"sha256:{known.sha256}") for found in expected.sums)
    return not changed(job.download.url, Validators(known.etag, known.modified), job.name, job.patience)


def _fetched(into: Path, known: _Known) -> Fetched:
    return Fetched(into / Path(known.file).name, known.sha256, known.size, known.signer)


# -- fetching ---------------------------------------------------------------------------------------------------------


@contextmanager
def _held(job: _Job) -> Iterator[BinaryIO]:
    """The `.part`, locked; another process that fetches the same is waited for. An empty one does not stay."""
    while True:
        with os.fdopen(os.open(job.part, _PART_FLAGS, 0o600), "r+b", buffering=0) as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                job.tell(f"waiting for another command that fetches {job.name}", 0.0)
                fcntl.flock(part, fcntl.LOCK_EX)
            if not _is_at(part, job.part):
                continue  # who held it has published or discarded it
            try:
                yield part
            finally:
                if not os.fstat(part.fileno()).st_size:
                    _discard(job)
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _transferred(job: _Job, expected: _Expected, part: BinaryIO) -> Fetched:
    """Fetch, verify, publish. A file that turns out wrong after it was put together from two transfers is fetched once more."""
    begun = _read_begun(job)
    resumed = bool(begun.condition and part.seek(0, os.SEEK_END))
    validators = _receive(job, part, begun)
    try:
        sha256, signer = _verify(job, job.part, expected)
    except Refused:
        part.truncate(0)
        if not resumed:
            _discard(job)
            raise
        job.tell(f"{job.name}: what was begun earlier does not fit; fetching it anew", 0.0)
        validators = _receive(job, part, Validators())
        try:
            sha256, signer = _verify(job, job.part, expected)
        except Refused:
            _discard(job)
            raise
    return _published(job, expected, part, validators, sha256, signer)


def _discard(job: _Job) -> None:
    job.part.unlink(missing_ok=True)
    job.begun.unlink(missing_ok=True)


def _read_begun(job: _Job) -> Validators:
    try:
        begun = parse_json(job.begun.read_text(encoding="utf-8"), _Begun, str(job.begun))
    except (OSError, BadDocument, UnicodeDecodeError):
        return Validators()
    return Validators(begun.etag, begun.modified)


def _receive(job: _Job, part: BinaryIO, begun: Validators) -> Validators:
    started, before = time.monotonic(), part.seek(0, os.SEEK_END)

    def told(done: int, whole: int) -> None:
        speed = (done - before) / max(time.monotonic() - started, 0.001)
        of = f" of {size_text(whole)}" if whole else ""
        job.tell(
            f"fetching {job.name}: {size_text(done)}{of}, {size_text(int(speed))}/s", _VERIFYING * done / whole if whole else 0.0
        )

    def note(validators: Validators) -> None:
        if validators != begun:
            write_whole(job.begun, dump_json(_Begun(validators.etag, validators.modified)))

    try:
        return fetch_file(job.download.url, part, begun, job.name, job.patience, told, note)
    except NoSpace:
        if spare(part.fileno()) < 0:
            part.truncate(0)  # what came is in the way of what is more urgent
        raise


def _published(job: _Job, expected: _Expected, part: BinaryIO, validators: Validators, sha256: str, signer: str) -> Fetched:
    """Give the verified file its name, durably, and note it in the index; an older one of this URL goes."""
    path = job.into / f"{sha256[:_KEY]}-{job.name}"
    older = _read_known(job.index)
    os.fchmod(part.fileno(), 0o644)
    os.fsync(part.fileno())
    told = os.fstat(part.fileno())
    sums = [f"{found.algorithm}:{found.hexadecimal}" for found in expected.sums if found.hexadecimal != sha256]
    known = _Known(
        path.name, sha256, told.st_size, told.st_mtime_ns, _claims(job.download), "".join(sums[:1]), signer,
        validators.etag, validators.modified,
    )  # fmt: skip
    job.index.parent.mkdir(mode=0o755, exist_ok=True)
    # The name comes last: who does not find it yet waits for the `.part`, which is locked until then.
    write_whole(job.index, dump_json(known))
    job.part.replace(path)
    sync_folder(job.into)
    job.begun.unlink(missing_ok=True)
    if older is not None and older.file != path.name and not _named(job, older.file):
        (job.into / Path(older.file).name).unlink(missing_ok=True)
    return _fetched(job.into, known)


def _named(job: _Job, file: str) -> bool:
    """Whether another entry of the index names the file."""
    others = (path for path in job.index.parent.glob("*.json") if path != job.index)
    return any(f'"{file}"' in path.read_text(encoding="utf-8", errors="replace") for path in others)
