"""The builder `bootstrap`: packages into a folder (mmdebstrap), the folder into a disk image, all in a namespace apart.

What is done inside is in `debian/`: `tree/` is laid over the new system before its packages, `customize.sh` runs in it after
them, `seal.sh` last, and `assemble.sh` makes the image. Storing the image and keeping records is builder.py's.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketcloud import profiles
from pocketcloud.bases import needs, newest, stages, wheels
from pocketcloud.bases.mirror import Mirror, apt_options, choose, from_cache
from pocketcloud.bases.namespace import WORK, confined, give, opened
from pocketcloud.bases.progress import OnProgress, Progress, cause
from pocketcloud.bases.recipe import Measured, Order
from pocketcloud.errors import HostLacks, NoSpace, PartlyDone, PocketcloudError
from pocketcloud.host import read_facts
from pocketcloud.model.base import Arch, BootstrapDefinition, Firmware, Wheels
from pocketcloud.model.sizes import MIB
from pocketcloud.system import CommandFailed, Completed, Runner, unproxied

RECIPE = 2
"""The version of what this module does beside the files in `debian/`: raised when an image would come out differently."""

_PARTS = Path(__file__).resolve().parent / "debian"
_COPY = 4 * MIB
_UNPACKED = 0.93
"""How much of the whole time the image takes; storing it takes the rest."""
_INSTALLED, _SEALED = 0.88, 0.92
"""Of that, how much until the packages are there, and until they are sealed."""
_IDS = {"ROOT_ID": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ESP_ID": "[0-9A-F]{4}-[0-9A-F]{4}"}
_LAST = ("seal.sh", "assemble.sh")
_LONGEST = 16 * MIB
_NOT_UNPACKED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_STILL_UNPACKED = ("/usr/share/doc/*/copyright",)


@dataclass(frozen=True, slots=True)
class Platform:
    """What differs between architectures: `console` is the first serial port, `kernel` what else its kernel is told (after a
    space), `efi` the suffix of EFI programs, `removable` the name that firmware looks for on a disk it knows nothing of (UEFI
    2.10, 3.5.1.1), `root_type` the type of a root partition (Discoverable Partitions Specification), `grub` GRUB's folder of
    signed images."""

    console: str
    kernel: str
    efi: str
    removable: str
    root_type: str
    grub: str


# Emulated on a busy host, a machine's timer may miss the one check that the kernel makes of it, which then gives up ("IO-APIC +
# timer doesn't work"); distributions' own cloud images leave the check out, too.
_PLATFORMS = {
    Arch.X86_64: Platform(
        "ttyS0", " no_timer_check", "x64", "BOOTX64.EFI", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "x86_64-efi-signed"
    ),
    Arch.AARCH64: Platform("ttyAMA0", "", "aa64", "BOOTAA64.EFI", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "arm64-efi-signed"),
}


def parts() -> Iterator[tuple[str, bytes]]:
    """The files that make up an image beside its packages: relative path and content, in a fixed order."""
    for path in sorted(_PARTS.rglob("*")):
        if path.is_file():
            yield path.relative_to(_PARTS).as_posix(), path.read_bytes()


def packages(definition: BootstrapDefinition, arch: Arch) -> tuple[str, ...]:
    """All packages that are asked for: what any base of this builder must have, then the definition's."""
    name = arch.debian
    boot = (f"linux-image-cloud-{name}", "initramfs-tools", "lz4", f"grub-efi-{name}", f"grub-efi-{name}-signed", "shim-signed")
    system = ("systemd-sysv", "udev", "dbus", "systemd-resolved", "iproute2", "netbase", "kmod", "e2fsprogs", "fdisk")
    lab = ("cloud-init", "cloud-guest-utils", "openssh-server", "openssh-sftp-server", "qemu-guest-agent")
    return tuple(dict.fromkeys((*boot, *system, *lab, *definition.packages)))


class Bootstrap:
    """See Recipe."""

    def inputs(self, definition: BootstrapDefinition, arch: Arch) -> Iterator[tuple[str, bytes]]:  # noqa: ARG002 - the same for all
        """See Recipe.inputs."""
        yield "recipe", str(RECIPE).encode()
        yield from parts()
        if definition.wheels:
            yield from wheels.fingerprint(definition.wheels)

    def firmware(self, definition: BootstrapDefinition, arch: Arch) -> Firmware:  # noqa: ARG002 - the same for all
        """See Recipe.firmware."""
        return Firmware.EFI

    def check(self, order: Order[BootstrapDefinition]) -> None:
        """See Recipe.check."""
        needs.check(order.definition, order.arch, order.work, order.storage, order.here, order.run)
        if order.definition.wheels:
            wheels.carried(order.definition.wheels)
        if order.definition.requires.cpu:
            # No guest is started yet, but machines of it will be.
            from pocketcloud.bases.install.preflight import check_guest

            check_guest(order, 0)

    def make(self, order: Order[BootstrapDefinition], volume: str) -> str:
        """See Recipe.make."""
        tools = made_with(order.run)
        with _source(order) as (mirror, options, run):
            image = make_image(order, mirror, options, run)
        rest = 1.0 - _UNPACKED

        def fill(target: Path) -> None:
            copy_sparse(image, target, lambda done: order.tell("storing the image", _UNPACKED + done * rest / 2))

        order.tell("storing the image", _UNPACKED)
        order.storage.create(volume, order.definition.size, fill)
        image.unlink()
        return tools


@contextmanager
def _source(order: Order[BootstrapDefinition]) -> Iterator[tuple[Mirror, str, Runner]]:
    """Where packages come from, how apt gets there, and what runs it."""
    if order.supply is not None:
        order.tell("packages from the kit's cache", 0.0)
        with order.supply.serve() as proxy:
            # apt would go past the proxy to hosts that the user's environment excepts.
            yield *from_cache(order.definition, proxy), unproxied(order.run)
        return
    mirror = choose(order.definition, order.mirror)
    order.tell("packages from the mirror asked for" if order.mirror else f"packages from {mirror.origin} mirror", 0.0)
    yield mirror, apt_options(order.run), order.run


def make_image(order: Order[BootstrapDefinition], mirror: Mirror, apt_options: str, run: Runner) -> Path:
    """Build the disk image in the order's work folder and return its path: raw, sparse, of the definition's size. `apt_options`
    is text for an apt.conf. Raises HostLacks, NoSpace or PartlyDone with the lines that explain it.
    """
    definition, work, tell = order.definition, order.work, order.tell
    kept = stages.stage(order.kit, definition, order.arch, _stage_inputs())
    there = not order.anew and kept.unpack(work, run)
    values = _values(definition, order.arch, _ids(work / "values") if there else {})
    _lay_out(definition, mirror, apt_options, values, work)
    if there:
        tell("packages are those of an earlier build", _INSTALLED * _UNPACKED)
    else:
        _installed(definition, order.arch, work, run, lambda text, part: tell(text, part * _UNPACKED))
        if kept.wanted:
            tell("keeping the packages for the next build", _INSTALLED * _UNPACKED)
        kept.keep(work, run)
    # Before the steps: who takes them is root in there, and may have put anything in the place of anything.
    order.measured(Measured(_taken(work), newest.read(_releases(work), order.arch)))
    share = _SEALED - _INSTALLED
    within = _patience(order) if definition.post else None
    if definition.wheels:
        carry(definition, definition.wheels, work, run)
    take_steps(definition, work, run, lambda text, part: tell(text, (_INSTALLED + share * part) * _UNPACKED), within)
    for name in _LAST:
        _put(work / name, _script(name, values))
    _step(definition, work, run, ["sh", "-c", "exec chroot root sh -s < seal.sh"], what="sealing")
    tell("making the disk image", _SEALED * _UNPACKED)
    _step(definition, work, run, ["sh", "assemble.sh"])
    _step(definition, work, run, ["rm", "-rf", "root", "esp.img"])
    return work / "disk.raw"


def carry(definition: BootstrapDefinition, wanted: Wheels, work: Path, run: Runner) -> None:
    """Lay the wheels into the new system, for its steps; sealing takes them away."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in wheels.carried(wanted).items():
            entry = tarfile.TarInfo(f"wheels/{name}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    packed = work / "wheels.tar"
    _put(packed, buffer.getvalue())
    _step(definition, work, run, ["tar", "--extract", "--file=wheels.tar", "--directory=root/var/tmp"], what="carrying wheels in")
    packed.unlink()


def _patience(order: Order[BootstrapDefinition]) -> float:
    """The seconds that a step of `post:` may take: what an installer may."""
    return (order.here.profile or profiles.choose(read_facts(order.here.root, run=order.run))).install.total


def take_steps(definition: BootstrapDefinition, work: Path, run: Runner, tell: OnProgress, within: float | None = None) -> None:
    """Apply the patches to the new system in `root`, and take the steps of `post:` in it, each in `within` seconds: `post.sh` is
    beside it. Raises PartlyDone, or what else the lines of the one that failed say."""
    for number, (what, argv, step) in enumerate(steps := _steps(definition)):
        _put(work / "step", step)
        tell(what, number / len(steps))
        _step(definition, work, run, argv, _said(what, tell, number / len(steps)), what, within)


def _said(what: str, tell: OnProgress, part: float) -> Callable[[str], None]:
    """Tells the lines of a step after its name."""
    return lambda line: tell(f"{what}: {line}", part)


def _stage_inputs() -> bytes:
    """What goes into a stage beside the definition: all of the recipe but what comes after."""
    later = {"seal.sh", "assemble.sh", "post.sh"}
    earlier = (f"{name}\0".encode() + content for name, content in parts() if name not in later)
    return b"\0".join([f"{RECIPE}".encode(), *earlier])


def _steps(definition: BootstrapDefinition) -> list[tuple[str, list[str], str]]:
    """What comes after the packages: a name for people, the command, and what it finds in the file `step`. The name does not
    say what is in it, which may be a secret."""
    patches = len(definition.patches)
    patch = ["patch", "--directory=root", "--strip=1", "--batch", "--forward", "--no-backup-if-mismatch", "--reject-file=-"]
    found = [
        (f"patch {number} of {patches}", [*patch, f"--input={WORK}/step"], text)
        for number, text in enumerate(definition.patches, 1)
    ]
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "post.sh"]
    last = len(definition.post)
    found += [(f"post step {number} of {last}", apart, text) for number, text in enumerate(definition.post, 1)]
    return found


def _taken(work: Path) -> int:
    """The bytes that the new system's files took when its packages were there, and their lists and archives still with them."""
    try:
        return int(_text(work / "releases/taken").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _releases(work: Path) -> list[str]:
    return [_text(path) for path in sorted((work / "releases").glob("*InRelease"))]


def _text(path: Path) -> str:
    with opened(path) as file:
        return file.read(_LONGEST).decode(errors="replace")


def _ids(path: Path) -> dict[str, str]:
    """The ids of the file systems that a stage was made for: its files name them."""
    try:
        said = dict(line.partition("=")[::2] for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeError):
        return {}
    return {name: said[name] for name, form in _IDS.items() if re.fullmatch(form, said.get(name, ""))}


def _values(definition: BootstrapDefinition, arch: Arch, ids: Mapping[str, str]) -> dict[str, str]:
    platform, esp = _PLATFORMS[arch], uuid.uuid4().hex[:8].upper()
    return {
        "ROOT_ID": ids.get("ROOT_ID") or str(uuid.uuid4()),
        "ESP_ID": ids.get("ESP_ID") or f"{esp[:4]}-{esp[4:]}",
        "CONSOLE": platform.console,
        "KERNEL": platform.kernel,
        "EFI": platform.efi,
        "REMOVABLE": platform.removable,
        "ROOT_TYPE": platform.root_type,
        "GRUB": platform.grub,
        "SIZE": str(definition.size // MIB),
        "SUITE": definition.suite,
        "MIRROR": definition.mirror,
        "SECURITY": definition.security,
    }


def _lay_out(definition: BootstrapDefinition, mirror: Mirror, apt_options: str, values: Mapping[str, str], work: Path) -> None:
    """Put what the namespace needs into the work folder. Addresses and proxies may carry passwords, so they go into files
    that only its root reads, not into command lines."""
    signed = f"[signed-by={definition.keyring}]"
    lines = [f"deb {signed} {mirror.archive} {suite} main" for suite in (definition.suite, f"{definition.suite}-updates")]
    if mirror.security:
        lines.append(f"deb {signed} {mirror.security} {definition.suite}-security main")
    files = {"sources.list": "\n".join(lines) + "\n", "apt.conf": 'Acquire::Languages "none";\n' + apt_options}
    for script in ("customize.sh", "post.sh", *_LAST):
        files[script] = _script(script, values)
    files["values"] = "".join(f"{name}={values[name]}\n" for name in _IDS)
    for name, text in files.items():
        _put(work / name, text)
    _put(work / "tree.tar", _overlay())
    for folder in ("tmp", "releases"):
        (work / folder).mkdir(mode=0o700, exist_ok=True)
        give(work / folder)


def _script(name: str, values: Mapping[str, str]) -> str:
    """A script with the values before it."""
    assignments = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    return assignments + (_PARTS / name).read_text(encoding="utf-8")


def _put(path: Path, content: str | bytes) -> None:
    """A file that only the namespace's root reads. What lies there already may be a link or a folder that is in our way."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    give(path)


def _overlay() -> bytes:
    """`debian/tree` as a tar archive whose files are root's, whoever owns the checkout."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in parts():
            if name.startswith("tree/"):
                entry = tarfile.TarInfo(name.removeprefix("tree/"))
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _installed(definition: BootstrapDefinition, arch: Arch, work: Path, run: Runner, tell: OnProgress) -> None:
    argv = [
        "mmdebstrap", "--verbose", "--mode=unshare", "--format=directory", "--variant=minbase",
        f"--architectures={arch.debian}",
        f"--keyring={definition.keyring}",
        f"--aptopt={WORK}/apt.conf",
        *[f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_UNPACKED],
        *[f"--dpkgopt=path-include={pattern}" for pattern in _STILL_UNPACKED],
        f"--include={','.join(packages(definition, arch))}",
        # The tree comes before the packages that read it (the initramfs is made once), the script after all of them.
        f"--essential-hook=tar-in {WORK}/tree.tar /",
        f'--customize-hook=chroot "$1" sh -s < {WORK}/customize.sh',
        f'--customize-hook=du -sx --block-size=1 "$1" > {WORK}/releases/taken',
        f'--customize-hook=cp "$1"/var/lib/apt/lists/*InRelease {WORK}/releases/',
        definition.suite,
        f"{WORK}/root",
        f"{WORK}/sources.list",
    ]  # fmt: skip
    _step(definition, work, run, argv, Progress(tell, 0.0, _INSTALLED).line)


def _step(
    definition: BootstrapDefinition,
    work: Path,
    run: Runner,
    argv: list[str],
    on_line: Callable[[str], None] | None = None,
    what: str = "",
    within: float | None = None,
) -> Completed:
    """Run a command in the namespace, for `within` seconds at most; its failure is explained by its own lines. `what` is its name
    for people."""
    inside = {name: str(WORK / "tmp") for name in ("HOME", "TMPDIR")}
    try:
        return run(confined(work, argv), env=inside, on_line=on_line, timeout=within)
    except CommandFailed as error:
        raise _explained(definition, what or argv[0], error) from error


def _explained(definition: BootstrapDefinition, tool: str, error: CommandFailed) -> PocketcloudError:
    why = cause(error.completed.out + error.completed.err)
    text = f"base {definition.base} was not built: {tool} failed\n" + "\n".join(f"  {line}" for line in why.lines)
    if why.full:
        return NoSpace(text, hint="remove labs or bases that are not needed, or move the kit to a larger disk")
    if why.trust:
        return HostLacks(
            text, hint=f"is {definition.keyring} up to date? Upgrade the keyring's package, or name another --mirror"
        )
    if why.network:
        return HostLacks(text, hint="is the mirror reachable? --mirror names another one")
    return PartlyDone(text, hint="nothing is left behind; run it again, with -v for the whole output")


def copy_sparse(source: Path, target: Path, tell: Callable[[float], None]) -> None:
    """Copy a raw image to a file or device that reads as zeros, leaving its holes out; `tell` gets the fraction done."""
    with opened(source) as read, target.open("r+b", buffering=0) as write:
        size, at = os.fstat(read.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only holes follow
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            while at < end:
                chunk = os.pread(read.fileno(), min(_COPY, end - at), at)
                at += _written(write.fileno(), chunk, at)
            tell(at / size)
        os.fsync(write.fileno())


def _written(handle: int, chunk: bytes, at: int) -> int:
    done = 0
    while done < len(chunk):
        done += os.pwrite(handle, chunk[done:], at + done)
    return done


def made_with(run: Runner) -> str:
    """The tools that images are made with, and their versions."""
    bootstrap = run(["mmdebstrap", "--version"]).out.split()
    ext = run(["mke2fs", "-V"])
    version = (ext.err or ext.out).split()
    return (
        f"recipe {RECIPE}, mmdebstrap {bootstrap[-1] if bootstrap else '?'}, e2fsprogs {version[1] if len(version) > 1 else '?'}"
    )
