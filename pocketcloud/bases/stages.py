"""Package stages: a new system as its packages left it, kept for the next build that differs only in what comes after them.

`media/stages/NAME/ARCH/DIGEST.tar.zst` in the kit, packed in the namespace. Only one is kept, and only of definitions with
`patches:` or `post:`, whose steps are what people try again and again; those of others would hold their space for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.bases.namespace import confined, give
from pocketcloud.documents import plain
from pocketcloud.files import remove_tree, sync_folder
from pocketcloud.model.base import Arch, BootstrapDefinition
from pocketcloud.model.kit import Kit
from pocketcloud.system import CommandFailed, Runner

# What comes after the packages, or changes nothing in them.
_LATER = frozenset({"title", "size", "patches", "post", "requires", "wheels", "disks"})
_PACKED = "stage.tar.zst"
# Modes, owners and capabilities are those of the namespace's view, so they are packed and unpacked in it.
_TAR = ("tar", "--use-compress-program=zstd -q -1 --check", "--numeric-owner", "--xattrs", "--xattrs-include=*")
_KEPT = ("root", "releases", "values")


@dataclass(frozen=True, slots=True)
class Stage:
    """The stage of one definition on one architecture; `digest` is that of all that goes into it."""

    kit: Kit
    definition: BootstrapDefinition
    arch: Arch
    digest: str

    @property
    def path(self) -> Path:
        """Where it is, or would be."""
        return folder(self.kit, self.definition.base, self.arch) / f"{self.digest[:32]}.tar.zst"

    @property
    def wanted(self) -> bool:
        """Whether it is worth keeping."""
        return bool(self.definition.patches or self.definition.post)

    def unpack(self, work: Path, run: Runner) -> bool:
        """Lay it out in `work`; False if there is none, or none that is whole: that one is gone then."""
        packed = work / _PACKED
        try:
            # A copy: the stage itself is the host's, and nobody in there is to change it.
            shutil.copyfile(self.path, packed)
            give(packed)
        except OSError:
            packed.unlink(missing_ok=True)
            return False
        try:
            run(confined(work, [*_TAR, "--extract", "--same-permissions", f"--file={_PACKED}"]))
        except CommandFailed:
            self.path.unlink(missing_ok=True)
            run(confined(work, ["rm", "-rf", *_KEPT]))
            return False
        finally:
            packed.unlink()
        return True

    def keep(self, work: Path, run: Runner) -> None:
        """Keep what lies in `work` (`root`, `releases`, `values`), and nothing of earlier stages; where it is not wanted, just
        the latter."""
        if self.wanted:
            run(confined(work, [*_TAR, "--create", f"--file={_PACKED}", *_KEPT]))
            packed = work / _PACKED
            packed.chmod(0o600)
            os.chown(packed, os.geteuid(), os.getegid(), follow_symlinks=False)
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            packed.rename(self.path)
            sync_folder(self.path.parent)
        for other in folder(self.kit, self.definition.base, self.arch).glob("*"):
            if other != self.path:
                other.unlink()


def stage(kit: Kit, definition: BootstrapDefinition, arch: Arch, inputs: bytes) -> Stage:
    """The stage of a definition; `inputs` is what goes into it beside the definition."""
    said = {key: value for key, value in plain(definition).items() if value and key not in _LATER}
    digest = hashlib.sha256(f"{arch}\0{json.dumps(said, ensure_ascii=False)}\0".encode() + inputs)
    return Stage(kit, definition, arch, digest.hexdigest())


def folder(kit: Kit, name: str, arch: Arch) -> Path:
    """Where the stage of a base lies."""
    return kit.path / "media" / "stages" / name / arch


def forget(kit: Kit, name: str, arch: Arch) -> None:
    """Remove what was kept for a base."""
    remove_tree(folder(kit, name, arch))
    with suppress(OSError):
        folder(kit, name, arch).parent.rmdir()
