"""What the package sources of a base have now: whether there is anything newer than what the base was made from.

Debian's lists are compared by the sums that the signed InRelease files give of them: a date alone would not do, as suites are
signed anew several times a day with nothing in them changed.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from pocketcloud.bases.mirror import choose
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.base import Arch, BootstrapDefinition, Newest
from pocketcloud.system import Runner, run, which

_PATIENCE = 20.0


def read(releases: Iterable[str], arch: Arch) -> Newest:
    """What InRelease files (repository format, wiki.debian.org/DebianRepository/Format) say of the lists of `arch`."""
    sums, dates = [], []
    for text in releases:
        suite = re.search(r"^Codename: *(\S+)", text, re.M)
        # The component of a security suite may be written with its path (`updates/main`).
        found = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ +(?:\S+/)?main/binary-{arch.debian}/Packages$", text, re.M)
        said = re.search(r"^Date: *(.+)$", text, re.M)
        if not (suite and found and said):
            continue
        sums.append(f"{suite[1]} {found[1]}\n")
        dates.append(parsedate_to_datetime(said[1].strip()).astimezone(UTC).isoformat(timespec="seconds"))
    if not sums:
        return Newest()
    return Newest(hashlib.sha256("".join(sorted(sums)).encode()).hexdigest(), max(dates))


def ask(definition: BootstrapDefinition, arch: Arch, mirror: str | None = None, run: Runner = run) -> Newest:
    """What its mirror has now, by the host's own apt, which knows the way there and whom to trust; changes nothing of the host.
    Empty where that cannot be told: no apt, no network."""
    if which("apt-get") is None:
        return Newest()
    found = choose(definition, mirror)
    signed = f"[signed-by={definition.keyring} arch={arch.debian}]"
    lines = [f"deb {signed} {found.archive} {suite} main" for suite in (definition.suite, f"{definition.suite}-updates")]
    if found.security:
        lines.append(f"deb {signed} {found.security} {definition.suite}-security main")
    with tempfile.TemporaryDirectory(prefix="pocketcloud-newest-") as name:
        folder = Path(name)
        # Addresses may carry passwords: in a file that is ours alone, not in a command line.
        (folder / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "lists/partial").mkdir(parents=True)
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",
            "APT::Architecture": arch.debian,
            "Acquire::Retries": 0,
            "Acquire::http::Timeout": 5,
            "Acquire::https::Timeout": 5,
            "Acquire::Languages": "none",
            # Nothing but the InRelease files is fetched.
            "Acquire::IndexTargets::deb::Packages::DefaultEnabled": "false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        }
        said = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        # What the host does after its own updates (caches, notifications) is not to be done here.
        hooks = "".join(f"#clear APT::Update::{when};\n" for when in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"))
        (folder / "apt.conf").write_text(hooks + said, encoding="utf-8")
        try:
            run(["apt-get", "-q", "-c", folder / "apt.conf", "update"], codes=(0, 100), timeout=_PATIENCE)
        except PocketcloudError:
            return Newest()
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / "lists").glob("*InRelease")]
    # One suite that did not come would look like a change.
    return read(texts, arch) if len(texts) == len(lines) else Newest()
