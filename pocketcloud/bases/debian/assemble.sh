#!/bin/sh
# Makes disk.raw of root/ in the current folder: GPT, EFI system partition, root file system. Runs in the user namespace (so
# that owners are those of the new system), with no device and no mount. Before it stand the values:
# ROOT_ID, ESP_ID, ROOT_TYPE (its partition type), SIZE (of the disk, MiB), EFI (x64), REMOVABLE (BOOTX64.EFI), GRUB (its folder).
set -eu

esp_mib=64
root_start=$((1 + esp_mib))
# The last MiB is the second partition table's.
root_mib=$((SIZE - root_start - 1))

truncate -s "${SIZE}M" disk.raw
sfdisk --quiet --no-reread --no-tell-kernel disk.raw <<END
label: gpt
start=1MiB, size=${esp_mib}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start=${root_start}MiB, size=${root_mib}MiB, type=$ROOT_TYPE, name=root
END

# The EFI system partition: what firmware without boot entries starts is Debian's signed shim. It loads the signed GRUB beside
# it, and that looks in /EFI/debian for where to go on (the name is built into it).
truncate -s "${esp_mib}M" esp.img
mkfs.vfat -F 32 -s 1 -n ESP -i "$(printf %s "$ESP_ID" | tr -d -)" esp.img > /dev/null
cat > esp-grub.cfg <<END
search.fs_uuid $ROOT_ID root
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg
END
mmd -i esp.img ::EFI ::EFI/BOOT ::EFI/debian
for folder in BOOT debian; do
    mcopy -i esp.img "root/usr/lib/grub/$GRUB/grub$EFI.efi.signed" "::EFI/$folder/grub$EFI.efi"
    mcopy -i esp.img "root/usr/lib/shim/mm$EFI.efi.signed" "::EFI/$folder/mm$EFI.efi"
done
mcopy -i esp.img "root/usr/lib/shim/shim$EFI.efi.signed" "::EFI/BOOT/$REMOVABLE"
mcopy -i esp.img "root/usr/lib/shim/shim$EFI.efi.signed" "::EFI/debian/shim$EFI.efi"
mcopy -i esp.img esp-grub.cfg ::EFI/debian/grub.cfg
dd if=esp.img of=disk.raw bs=1M seek=1 conv=notrunc,sparse status=none

# Features are listed one by one: newer ones (metadata_csum_seed, orphan_file) are not read by GRUB 2.06, and which are default
# depends on the host. Tables are written now, or the machine's first minutes go into it.
mke2fs -q -F -t ext4 -b 4096 -I 256 -m 1 -L root -U "$ROOT_ID" \
    -O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum \
    -E "offset=$((root_start * 1048576)),lazy_itable_init=0,lazy_journal_init=0" \
    -d root disk.raw "${root_mib}M"
