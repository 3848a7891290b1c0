"""Options that many commands share, and what they open: kit, store, libvirt, facts, profile."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pocketcloud.errors import HostLacks, NotFound, Refused, UsageError

if TYPE_CHECKING:
    from pocketcloud.cli.view import View
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.kit import Kit
    from pocketcloud.model.lab import Lab
    from pocketcloud.model.names import Name

F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """`-o table|json`: the form of the answer on stdout."""
    choice = click.Choice(["table", "json"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="The form of the answer.")(
        function
    )


def kit_option(function: F) -> F:
    """`--kit NAME`."""
    return click.option("--kit", "kit_name", metavar="NAME", envvar="POCKETCLOUD_KIT", help="The kit, if several are attached.")(
        function
    )


def own_files_option(flag: str, variable: str, text: str) -> Callable[[F], F]:
    """`FLAG DIR`: a folder of the user's own files. It is said in the environment, where resources.py looks for it, so that it is
    the same for everything the command does, and for the command when it runs again through sudo."""

    def keep(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ[variable] = str(value.absolute())

    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option(flag, type=kind, metavar="DIR", envvar=variable, callback=keep, expose_value=False, help=text)


templates_option = own_files_option(
    "--templates", "POCKETCLOUD_TEMPLATES", "A folder of your own templates; each takes the place of ours of its name."
)
bases_option = own_files_option(
    "--bases", "POCKETCLOUD_BASES", "A folder of your own definitions; each takes the place of ours of its name."
)


def arch_option(function: F) -> F:
    """`--arch`."""
    choice = click.Choice(["x86_64", "aarch64"])
    return click.option("--arch", type=choice, help="The architecture; left out: this host's.")(function)


def wanted_arch(arch: str | None) -> str:
    """The architecture asked for, else this host's. Raises UsageError on a host of one that we do not know."""
    from pocketcloud.model.base import Arch

    wanted = arch or platform.machine()
    if wanted not in list(Arch):
        raise UsageError(f"this host is a {wanted}; pocketcloud knows {', '.join(Arch)}", hint="--arch names one")
    return wanted


def yes_option(function: F) -> F:
    """`-y`."""
    return click.option("-y", "--yes", is_flag=True, help="Answer the question with yes.")(function)


def progress_options(function: F) -> F:
    """`--progress` and `-v`."""
    choice = click.Choice(["auto", "plain", "json", "none"])
    shown = "How progress is shown on stderr."
    function = click.option("--progress", type=choice, default="auto", envvar="POCKETCLOUD_PROGRESS", help=shown)(function)
    return click.option("-v", "--verbose", count=True, help="Say more: every step of the plan.")(function)


@dataclass(frozen=True, slots=True)
class LabOptions:
    """The options that lab commands share, as one argument; those that a command does not take have their defaults."""

    kit_name: str | None
    profile_name: str | None
    progress: str
    verbose: int
    output: str
    no_wait: bool = False
    dry_run: bool = False
    yes: bool = False
    take_protected: bool = False
    offline: bool | None = None
    warm: bool = False
    cold: bool = False


_OFFLINE = "Use nothing but the kit's cache; left out: where this computer has no default route."
_FLAGS = {
    "offline": click.option("--offline/--online", "offline", default=None, envvar="POCKETCLOUD_OFFLINE", help=_OFFLINE),
    "warm": click.option("--warm", is_flag=True, help="Keep the machines' memory with `clean`: resets wake them from it."),
    "cold": click.option("--cold", is_flag=True, help="Start machines cold, also those whose memory is kept."),
    "no_wait": click.option("--no-wait", is_flag=True, help="Fail at once if another command works on the lab."),
    "dry_run": click.option("--dry-run", is_flag=True, help="Print the plan, with the exact commands and XML, and do nothing."),
    "protected": click.option(
        "--protected", "take_protected", is_flag=True, help="Do it to protected machines, too; -y does not answer for them."
    ),
    "yes": click.option("-y", "--yes", is_flag=True, help="Answer the question with yes."),
}


def lab_options(*flags: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a lab command the shared options and the named flags; it gets them as `options`, a LabOptions."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_options(**given: Any) -> Any:
            shared = {field.name: given.pop(field.name) for field in fields(LabOptions) if field.name in given}
            return function(options=LabOptions(**shared), **given)

        profile = "Shape machines by this profile."
        wrapped: Callable[..., Any] = with_options
        for flag in flags:
            wrapped = _FLAGS[flag](wrapped)
        wrapped = output_option(progress_options(kit_option(wrapped)))
        return click.option("--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help=profile)(wrapped)

    return decorate


def offline_option(function: F) -> F:
    """`--offline/--online`; left out, whether there is a way out decides: `is_offline`."""
    return _FLAGS["offline"](function)


def is_offline(asked: bool | None) -> bool:
    """Whether nothing may be fetched: as asked, else because there is no default route, which is told."""
    if asked is not None:
        return asked
    from pocketcloud.host.network import has_way_out

    if has_way_out(Path("/")):
        return False
    click.echo("note: no default route; nothing but the kit's cache is used (--online tries the network)", err=True)
    return True


def now() -> str:
    """The time as ISO 8601 text in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def require_root(reason: str) -> None:
    """Go on as root, through sudo on a terminal; elsewhere raise HostLacks. `reason` completes "root is needed to ..."."""
    if os.geteuid() == 0:
        return
    from pocketcloud.system import become, which

    if not sys.stdin.isatty() or which("sudo") is None:
        raise HostLacks(f"root is needed to {reason}", hint=f"sudo {shlex.join(['pocketcloud', *sys.argv[1:]])}")
    click.echo(f"Root is needed to {reason}: running again through sudo.", err=True)
    kept = ",".join(sorted(name for name in os.environ if name.startswith("POCKETCLOUD_") or name == "LIBVIRT_DEFAULT_URI"))
    become(["sudo", *([f"--preserve-env={kept}"] if kept else []), "--", sys.executable, "-m", "pocketcloud", *sys.argv[1:]])


def open_kit(kit_name: str | None, *, make: bool = False) -> Kit:
    """The kit a command means; with `make` the default one is made if there is none at all. Definitions that came with its
    imported labs are found from then on; said in the environment, as by `own_files_option`."""
    from pocketcloud.kit.attached import Places, attached_kits, find_kit
    from pocketcloud.kit.directory import init_directory
    from pocketcloud.resources import IMPORTED
    from pocketcloud.sharing.kept import base_folders

    places = Places.from_environment()
    try:
        kit = find_kit(places, kit_name)
        os.environ[IMPORTED] = "\n".join(str(folder) for folder in base_folders(kit.path))
        return kit
    except NotFound:
        if not make or attached_kits(places) or kit_name not in (None, "default"):
            raise
    kit = init_directory(places, places.default, None, now=now())
    click.echo(f"Made the default kit in {kit.path}.", err=True)
    return kit


def with_imported(kit_name: str | None) -> None:
    """As `open_kit`, for a command that looks for definitions before it needs a kit, or without one: where there is none, nothing
    was imported."""
    with suppress(NotFound, UsageError):
        open_kit(kit_name)


def instance_name(text: str) -> Name:
    """A name from the command line; raises UsageError with the rule."""
    from pocketcloud.model.names import Name

    try:
        return Name.parse(text)
    except ValueError as error:
        raise UsageError(str(error), hint="a file is named by its path: one with `/`, or that ends in .yaml") from None


def open_bench(kit: Kit, view: View, *, profile_name: str | None, wait: bool = True, offline: bool = False) -> Workbench:
    """Everything a lab command works with."""
    from pocketcloud import profiles
    from pocketcloud.host import read_facts
    from pocketcloud.hypervisor import open_hypervisor
    from pocketcloud.keys import invoking_home, user_public_keys
    from pocketcloud.kit.attached import Places
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.storage import open_storage

    facts = read_facts()
    return Workbench(
        places=Places.from_environment(),
        kit=kit,
        storage=open_storage(kit),
        hypervisor=open_hypervisor(),
        facts=facts,
        profile=profiles.find(profile_name) if profile_name else profiles.choose(facts),
        authorized=user_public_keys(invoking_home(os.environ)),
        now=now,
        emit=view.emit,
        command=shlex.join(["pocketcloud", *sys.argv[1:]]),
        wait=wait,
        offline=offline,
    )


@contextmanager
def bench(options: LabOptions, *, make: bool = False, raises: bool = False) -> Iterator[Workbench]:
    """A workbench whose view is closed in every case; with `make` the default kit is made if there is none at all; with
    `raises` a lab is to be raised, which may have to do without a network."""
    from pocketcloud.cli.view import open_view

    view = open_view(options.progress, options.verbose)
    try:
        kit = open_kit(options.kit_name, make=make)
        offline = raises and is_offline(options.offline)
        made = open_bench(kit, view, profile_name=options.profile_name, wait=not options.no_wait, offline=offline)
        made.warm, made.cold = options.warm, options.cold
        yield made
    finally:
        view.close()


def is_path(text: str) -> bool:
    """Whether a LAB argument is a path: it holds `/` or ends in `.yaml`."""
    return "/" in text or text.endswith((".yaml", ".yml"))


def here_lab() -> Path:
    """`lab.yaml` of the current folder, for a command without LAB; raises UsageError if there is none."""
    path = Path("lab.yaml")
    if not path.exists():
        raise UsageError("which lab? There is no lab.yaml here", hint="name one: pocketcloud lab list shows them; or give a path")
    return path


def wanted_lab(text: str | None, kit_path: Path) -> tuple[Lab | None, Name]:
    """What LAB means: the lab of a file, or None and the name of an instance in the kit, or a lab imported into it, or a shipped
    one."""
    from pocketcloud.documents import load_lab
    from pocketcloud.resources import shipped
    from pocketcloud.sharing.kept import lab_file

    if text is None or is_path(text):
        lab = load_lab(here_lab() if text is None else Path(text))
        return lab, lab.lab
    name = instance_name(text)
    if (kit_path / "labs" / name / "lab.json").exists():
        return None, name
    for place in (lab_file(kit_path, name), shipped("labs", f"{name}.yaml")):
        if place.exists():
            return load_lab(place), name
    known = ", ".join(sorted(path.stem for path in shipped("labs").glob("*.yaml")))
    raise NotFound(
        f"no lab {name} in the kit, and none that we ship ({known})",
        hint="pocketcloud lab list shows the kit's; a file needs a `/` or `.yaml`",
    )


def lab_under(text: str | None, kit: Kit, alias: Name | None) -> tuple[Lab | None, Name]:
    """As `wanted_lab`; with `alias` it is to be raised under that name, which no instance of another lab may have (Refused)."""
    lab, name = wanted_lab(text, kit.path)
    if alias is None:
        return lab, name
    from pocketcloud.records import InstanceFiles, read_record

    if lab is None and (record := read_record(InstanceFiles(kit, name))) is not None:
        lab = record.lab
    known = read_record(InstanceFiles(kit, alias))
    if known is not None and lab is not None and known.lab.lab != lab.lab:
        raise Refused(f"{alias} is there, as an instance of the lab {known.lab.lab}", hint="give it another name")
    return lab, alias


def copies_of(text: str | None, kit: Kit, prefix: Name | None, count: int) -> dict[Name, Lab | None]:
    """Copies of LAB to be raised: their names (PREFIX-1 and so on; no prefix: that of the lab's own name), and the lab of each,
    None for one that has a record, where LAB is no file. Raises UsageError where a name gets too long, and as `lab_under`."""
    from pocketcloud.plan.many import copy_names

    try:
        names = copy_names(prefix or instance_of(text), count)
    except ValueError as error:
        raise UsageError(f"the copies need names with a number: {error}", hint="--as gives them a shorter one") from None
    try:
        return {name: lab_under(text, kit, name)[0] for name in names}
    except NotFound:
        # Raised from a file, which need not be there any more: whoever names the lab means what the first copy was made from.
        from pocketcloud.records import InstanceFiles, read_record

        first = read_record(InstanceFiles(kit, names[0]))
        if text is None or is_path(text) or first is None:
            raise
        there = {name for name in names if InstanceFiles(kit, name).record.exists()}
        return {name: None if name in there else first.lab for name in names}


def is_new(text: str | None) -> bool:
    """Whether LAB can be raised without being in a kit: it is a file's, or shipped. For any other name no kit need be made."""
    from pocketcloud.resources import shipped

    return text is None or is_path(text) or shipped("labs", f"{instance_name(text)}.yaml").exists()


def instance_of(text: str | None) -> Name:
    """The instance that LAB names: by its name, or by its file's."""
    from pocketcloud.documents import load_lab

    if text is None or is_path(text):
        return load_lab(here_lab() if text is None else Path(text)).lab
    return instance_name(text)
