"""Disks in every kind of use, and one that is free, a function each: what tests/disk_trees.py makes hosts of.

`trees()` is the strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from pocketcloud.model.sizes import GIB, MIB
from tests.disk_trees import Made, Tree

POINTS = ("/media/me/My Disk", "/mnt", "/srv/data", "/run/media/me/X", "/var/lib/docker", "/a\\b")
FILE_SYSTEMS = ("ext4", "xfs", "ntfs", "vfat", "exfat", "f2fs")


def system_plain(tree: Tree) -> None:
    name = tree.chance.choice(("", "nvme0n1", "vda", "mmcblk0", "xvda"))
    disk = tree.disk(name="" if name in tree.made else name)
    efi, root = tree.part(disk, 512 * MIB, "vfat"), tree.part(disk, 40 * GIB, "ext4")
    tree.mount(efi, "/boot/efi")
    tree.mount(root, "/")
    tree.protect(disk, "system", efi, root)
    # What a second system may have left: idle, and not of this disk's use.
    tree.allow(tree.part(disk, 20 * GIB, *tree.chance.choice(((), ("ext4",)))))


def system_encrypted(tree: Tree) -> None:
    disk = tree.disk()
    boot, rest = tree.part(disk, 3 * GIB, "ext4"), tree.part(disk, 200 * GIB, "crypto_LUKS")
    tree.mount(boot, "/boot")
    crypt = tree.stacked("crypt", rest, sides="both")
    crypt.signatures.append("LVM2_member")
    for point in ("/", "/home"):
        tree.mount(tree.stacked("lvm", crypt, sides="both"), point)
    tree.swap(tree.stacked("lvm", crypt, sides="both"))
    tree.protect(disk, "system", boot, rest)


def mounted_partition(tree: Tree) -> None:
    disk = tree.disk()
    part = tree.part(disk, 30 * GIB, tree.chance.choice(FILE_SYSTEMS))
    tree.mount(part, tree.chance.choice(POINTS))
    tree.protect(disk, "mounted on", part)
    tree.allow(tree.part(disk, 20 * GIB))


def mounted_whole(tree: Tree) -> None:
    disk = tree.disk()
    disk.signatures.append("ext4")
    tree.mount(disk, tree.chance.choice(POINTS))
    tree.protect(disk, "mounted on")


def swap_partition(tree: Tree) -> None:
    disk = tree.disk()
    part = tree.part(disk, 8 * GIB, "swap")
    tree.swap(part)
    tree.protect(disk, "swap", part)


def swap_whole(tree: Tree) -> None:
    disk = tree.disk()
    disk.signatures.append("swap")
    tree.swap(disk)
    tree.protect(disk, "swap")


def held(tree: Tree) -> None:
    """By something that nobody can name, and whose content says nothing."""
    disk = tree.disk()
    if tree.chance.random() < 0.5:
        part = tree.part(disk, 30 * GIB)
        tree.stacked(tree.chance.choice(("dm", "lvm", "crypt", "raid1")), part)
        tree.protect(disk, "in use by", part)
    elif tree.chance.random() < 0.5:
        tree.stacked("dm", disk)
        tree.protect(disk, "in use by")
    else:
        disk.holders.append("bcache0")
        tree.protect(disk, "in use by bcache0")


def held_as_a_whole(tree: Tree) -> None:
    """Its partitions show no use of their own."""
    disk = tree.disk()
    parts = [tree.part(disk, 20 * GIB) for _ in range(2)]
    tree.stacked("mpath", disk)
    tree.protect(disk, "in use by", *parts)


def member(tree: Tree) -> None:
    """Of something that is not running now."""
    disk = tree.disk()
    kind, word = tree.chance.choice(
        (
            ("LVM2_member", "volume group"), ("linux_raid_member", "RAID"), ("isw_raid_member", "something larger"),
            ("ddf_raid_member", "something larger"), ("crypto_LUKS", "encrypted"), ("bcache", "cache"), ("zfs_member", "ZFS"),
            ("ceph_bluestore", "Ceph"), ("VMFS_volume_member", "something larger"), ("stratis", "Stratis"),
        )
    )  # fmt: skip
    if tree.chance.random() < 0.5:
        disk.signatures.append(kind)
        tree.protect(disk, word)
    else:
        part = tree.part(disk, 30 * GIB, kind)
        tree.protect(disk, word, part)
        tree.allow(tree.part(disk, 20 * GIB))


def member_for_udev(tree: Tree) -> None:
    """Nothing lies on the disk that would say it."""
    disk = tree.disk()
    disk.row["fstype"] = "mpath_member"
    tree.protect(disk, "something larger (mpath_member)")


def two_signatures(tree: Tree) -> None:
    """udev and lsblk say nothing at all of such a disk."""
    disk = tree.disk()
    disk.signatures += tree.chance.choice((["ext4", "LVM2_member"], ["zfs_member", "vfat"], ["crypto_LUKS", "linux_raid_member"]))
    tree.protect(disk, "belongs to")


def member_below_partitions(tree: Tree) -> None:
    """A RAID of whole disks whose table of partitions shows through."""
    disk = tree.disk()
    disk.signatures.append("linux_raid_member")
    tree.protect(disk, "RAID", tree.part(disk, 20 * GIB))


def raid(tree: Tree) -> None:
    disks = [tree.disk() for _ in range(2)]
    for disk in disks:
        disk.signatures.append("linux_raid_member")
    array = tree.stacked("raid1", *disks)
    tree.mount(tree.stacked("lvm", tree.stacked("crypt", array)), "/home")
    tree.protect(disks[0], "RAID", disks[1])


def deep(tree: Tree) -> None:
    """Nothing but the very top is in use."""
    disk = tree.disk()
    part = tree.part(disk, 90 * GIB)
    top = tree.stacked("lvm", tree.stacked("crypt", tree.stacked("raid5", part)))
    tree.mount(top, "/srv")
    tree.protect(disk, "mounted on /srv", part)


def multipath(tree: Tree) -> None:
    one, two = tree.disk(), tree.disk()
    two.row |= one.row
    top = tree.stacked("mpath", one, two)
    tree.mount(top, "/srv")
    tree.protect(one, "in use by", two)


def btrfs_mounted(tree: Tree) -> None:
    """The mount table names only one of them."""
    one, two = tree.disk(), tree.disk()
    for disk in (one, two):
        disk.signatures.append("btrfs")
    tree.tables[0].append(f"30 1 0:44 /@ /data rw - btrfs {one.path} rw,subvol=/@")
    tree.mounted |= {one.name: {"/data"}, two.name: {"/data"}}
    tree.btrfs_sets.append((one.name, two.name))
    tree.protect(one, "mounted on", two)


def btrfs_half(tree: Tree) -> None:
    """The other half is not plugged in."""
    disk = tree.disk()
    disk.signatures.append("btrfs")
    tree.btrfs_counts[disk.name] = 2
    tree.protect(disk, "one of several")


def kit_source(tree: Tree) -> None:
    disk = tree.disk()
    part = tree.part(disk, 90 * GIB, "LVM2_member")
    tree.kit_sources.add(tree.chance.choice((part.name, part.path)))
    tree.protect(disk, "attached kit", part)


def kit_source_unknown_content(tree: Tree) -> None:
    disk = tree.disk()
    tree.kit_sources.add(disk.path)
    tree.protect(disk, "attached kit", tree.part(disk, 90 * GIB))


def read_only(tree: Tree) -> None:
    disk = tree.disk()
    disk.attributes["ro"] = "1"
    tree.protect(disk, "read-only", tree.part(disk, 20 * GIB))


def too_small(tree: Tree) -> None:
    disk = tree.disk(tree.chance.randrange(1, 3 * GIB // 512) * 512)
    tree.protect(disk, "too small")


def no_medium(tree: Tree) -> None:
    """A card reader without a card."""
    disk = tree.disk()
    disk.size = 0
    tree.protect(disk, "no medium")


def loop_of_others(tree: Tree) -> None:
    number = sum(one.name.startswith("loop") for one in tree.made.values())
    made = tree.add(Made(f"loop{number}", "loop", 4 * GIB, tree.number(7)))
    made.attributes["loop/backing_file"] = f"/var/lib/images/{tree.chance.randrange(99)} x{number}.img"
    if tree.chance.random() < 0.5:
        tree.mount(made, "/snap/core/1")
    tree.protect(made, "loop device")
    tree.add(Made(f"loop{number + 1}", "loop", 0, tree.number(7)))


def loop_of_kit_file(tree: Tree) -> None:
    if tree.file is not None:
        return
    number = sum(one.name.startswith("loop") for one in tree.made.values())
    made = tree.add(Made(f"loop{number}", "loop", 8 * GIB, tree.number(7)))
    tree.file = Path("/home/me/kit.img")
    made.attributes["loop/backing_file"] = str(tree.file)
    tree.allow(made)


def loop_twice(tree: Tree) -> None:
    """Two loop devices of one file, each with ideas of its own."""
    if tree.file is not None:
        return
    loop_of_kit_file(tree)
    (first,) = (one for one in tree.made.values() if one.attributes.get("loop/backing_file") == str(tree.file))
    second = tree.add(Made(f"loop{50 + len(tree.made)}", "loop", first.size, tree.number(7)))
    second.attributes |= first.attributes
    tree.free.remove(first.name)
    tree.protect(first, "is also behind", second)


def loop_on_a_disk(tree: Tree) -> None:
    """The kernel does not list it as a holder."""
    disk = tree.disk()
    target = tree.chance.choice((disk, tree.part(disk, 20 * GIB)))
    number = sum(one.name.startswith("loop") for one in tree.made.values())
    made = tree.add(Made(f"loop{number}", "loop", 4 * GIB, tree.number(7)))
    made.attributes["loop/backing_file"] = target.path
    tree.protect(disk, f"in use by {made.name}")
    tree.protect(made, "loop device")
    for part in [one for one in tree.made.values() if one.disk == disk.name]:
        tree.protect(part, f"in use by {made.name}")


def no_disks(tree: Tree) -> None:
    """Things that lsblk calls disks, or nearly."""
    for name, kind, size in (("zram0", "disk", 16), ("sr0", "rom", 4), ("nbd0", "disk", 40), ("mmcblk1boot0", "disk", 4)):
        if name not in tree.made:
            made = tree.add(Made(name, kind, size * GIB, tree.number(11)))
            tree.protect(made, "no disk" if kind == "rom" else "does not know")
    if tree.chance.random() < 0.5:
        tree.swaps.append("/dev/zram0 partition 4194300 0 100")


def unreadable(tree: Tree) -> None:
    disk = tree.disk()
    disk.readable = False
    tree.protect(disk, "cannot be read")


USES: tuple[Callable[[Tree], None], ...] = (
    system_plain, system_encrypted, mounted_partition, mounted_whole, swap_partition, swap_whole, held, held_as_a_whole, member,
    member_for_udev, two_signatures, member_below_partitions, raid, deep, multipath, btrfs_mounted, btrfs_half, kit_source,
    kit_source_unknown_content, read_only, too_small, no_medium, loop_of_others, loop_of_kit_file, loop_twice,
    loop_on_a_disk, no_disks, unreadable,
)  # fmt: skip


def free_disk(tree: Tree) -> None:
    """Empty, with old content, with old partitions; its serial may be another's, or none."""
    disk = tree.disk()
    others = [one for one in tree.made.values() if one.kind == "disk" and one is not disk]
    if others and tree.chance.random() < 0.2:
        disk.row["serial"] = tree.chance.choice(others).row.get("serial", "")
    tree.allow(disk)
    before = tree.chance.random()
    if before < 0.3:
        disk.signatures.append(tree.chance.choice((*FILE_SYSTEMS, "btrfs", "iso9660")))
        disk.label = tree.chance.choice(("", "OLD", "Meine Fotos"))
    elif before < 0.6:
        tree.allow(tree.part(disk, 5 * GIB, "ntfs"))
        tree.protect(tree.part(disk, 100 * MIB, "vfat"), "too small")


@st.composite
def trees(draw: st.DrawFn, most: int = 4) -> Tree:
    """Hosts with up to `most` kinds of use, and exactly one disk that is free, anywhere among them."""
    uses = draw(st.lists(st.sampled_from(USES), max_size=most))
    tree = Tree(draw(st.integers(0, 2**32)))
    uses.insert(draw(st.integers(0, len(uses))), free_disk)
    for use in uses:
        use(tree)
    return tree
