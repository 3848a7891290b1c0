"""A place apart in which an image's own programs may run: user, mount and process namespaces of their own.

Root in there is an unprivileged user of the host, so that packages' scripts, and mistakes in ours, reach nothing of the host.
Nothing outlives the command: the process namespace ends with its first process, and that one with its parent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# Root in there is this user of the host, the others follow. The range from 0x70000000 is nobody's: it lies above those
# that useradd and systemd give out (systemd's "Users, Groups, UIDs and GIDs on systemd systems").
FIRST_ID = 0x7000_0000
_IDS = 65536

# Where the work folder is seen from in there. Its parents on the host may be closed to the user that root is in there.
WORK = Path("/mnt")

# The holder makes the user namespace and waits; its map is written from outside, which is what needs the host's root.
# nsenter then enters as root of it. A kit on a disk is mounted noexec, and what is built here has to run here: that is
# lifted for this view of the folder alone. A background job of sh loses its input, hence descriptor 3.
_SCRIPT = f"""
set -eu
trap 'exit 143' HUP INT TERM
mount --bind -- "$1" {WORK}
mount -o remount,bind,exec,nosuid,nodev {WORK}
cd {WORK}
shift
unshare --user sleep infinity &
holder=$!
until [ "$(readlink "/proc/$holder/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
echo 0 {FIRST_ID} {_IDS} > "/proc/$holder/uid_map"
echo 0 {FIRST_ID} {_IDS} > "/proc/$holder/gid_map"
exec 3<&0
nsenter --user --target "$holder" -- "$@" <&3 3<&- &
wait $!
"""


def confined(work: Path, argv: Sequence[str | Path]) -> list[str | Path]:
    """The command that runs `argv` in there, as root of it, in the folder `work`, which it finds at WORK.

    `work` must be owned by that root (see `give`). Needs the host's root, setpriv, unshare and nsenter (util-linux).
    """
    apart = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, "sh", "-c", _SCRIPT, "namespace", work.resolve(), *argv]


def give(path: Path) -> None:
    """Make `path` belong to the root in there. Raises OSError where the file system keeps no owners."""
    os.chown(path, FIRST_ID, FIRST_ID, follow_symlinks=False)
