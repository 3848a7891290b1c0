"""A place apart in which an image's own programs may run: user, mount and process namespaces of their own.

Root in there is an unprivileged user of the host, so that packages' scripts, and mistakes in ours, reach nothing of the host.
Nothing outlives the command: the process namespace ends with its first process, and that one with its parent.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pocketcloud.disk_space import reserve
from pocketcloud.errors import Refused

# Root in there is the first user of a range of the host's, the others follow. Those from 0x70000000 are nobody's: they lie above
# what useradd and systemd give out (systemd's "Users, Groups, UIDs and GIDs on systemd systems"). Each work folder has a range of
# its own, as what is built in one may come from strangers and is not to reach into another.
_LOWEST = 0x7000_0000
_IDS = 65536
_RANGES = 4000

# Where the work folder is seen from in there. Its parents on the host may be closed to the user that root is in there.
WORK = Path("/mnt")

# The holder makes the user namespace and waits; its map is written from outside, which is what needs the host's root.
# nsenter then enters as root of it. A kit on a disk is mounted noexec, and what is built here has to run here: that is
# lifted for this view of the folder alone. A background job of sh loses its input, hence descriptor 3. What runs in there
# may write as much as it likes; the host's disk is not to be filled with it, so its free space is looked at, and the end of
# this shell, the first process, is the end of all.
_FULL = 28
_SCRIPT = f"""
set -eu
trap 'exit 143' HUP INT TERM
trap 'echo "No space left on device, but for what others need" >&2; exit {_FULL}' USR1
mount --bind -- "$1" {WORK}
mount -o remount,bind,exec,nosuid,nodev {WORK}
cd {WORK}
first=$2
least=$3
shift 3
unshare --user sleep infinity &
holder=$!
until [ "$(readlink "/proc/$holder/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
echo "0 $first {_IDS}" > "/proc/$holder/uid_map"
echo "0 $first {_IDS}" > "/proc/$holder/gid_map"
exec 3<&0
nsenter --user --target "$holder" -- "$@" <&3 3<&- &
job=$!
while sleep 1; do
  set -- $(stat --file-system --format='%a %S' .)
  if [ $(($1 * $2)) -lt "$least" ]; then kill -USR1 $$; fi
done <&- 3<&- &
wait $job
"""


def confined(work: Path, argv: Sequence[str | Path]) -> list[str | Path]:
    """The command that runs `argv` in there, as root of it, in the folder `work`, which it finds at WORK.

    `work` must be owned by that root (see `give`). It fails when the disk of `work` gets full but for what others need. Needs the
    host's root, setpriv, unshare and nsenter (util-linux).
    """
    apart = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    place: list[str | Path] = [work.resolve(), str(_range_of(work) or first_id(work)), str(reserve(work))]
    script: list[str | Path] = ["sh", "-c", _SCRIPT, "namespace", *place]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, *script, *argv]


def first_id(work: Path) -> int:
    """The user of the host that is root in a work folder of that path: the same each time, and hardly another folder's."""
    return _LOWEST + _IDS * (zlib.crc32(bytes(work.resolve())) % _RANGES)


def _range_of(path: Path) -> int:
    """The root of the range that a file belongs to; 0 if it is none of ours."""
    number = path.stat(follow_symlinks=False).st_uid - _LOWEST
    return _LOWEST + number // _IDS * _IDS if 0 <= number < _IDS * _RANGES else 0


def give(path: Path) -> None:
    """Make `path` belong to the root in there: of the work folder that it lies in, or is. Raises OSError where the file system
    keeps no owners."""
    owner = next((owner for folder in path.parents if (owner := _range_of(folder))), 0) or first_id(path)
    os.chown(path, owner, owner, follow_symlinks=False)


def opened(path: Path) -> BinaryIO:
    """A file that was made in there, to be read out here. Raises Refused for anything else in its place: a link would lead the
    host's root to files of the host."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _odd(path) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _odd(path)
    return os.fdopen(handle, "rb")


def _odd(path: Path) -> Refused:
    return Refused(
        f"what was to be built has something else in the place of {path.name}, which could lead to files of this host",
        hint="do you trust who wrote this definition? Look at its `post:` and `patches:`",
    )
