"""Options that many commands share, and what they open: kit, store, libvirt, facts, profile."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pocketcloud.errors import HostLacks, UsageError

if TYPE_CHECKING:
    from pocketcloud.cli.view import View
    from pocketcloud.lab.workbench import Workbench
    from pocketcloud.model.kit import Kit
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


def yes_option(function: F) -> F:
    """`-y`."""
    return click.option("-y", "--yes", is_flag=True, help="Answer the question with yes.")(function)


def dry_run_option(function: F) -> F:
    """`--dry-run`."""
    return click.option("--dry-run", is_flag=True, help="Print the plan, with the exact commands and XML, and do nothing.")(
        function
    )


def progress_options(function: F) -> F:
    """`--progress` and `-v`."""
    choice = click.Choice(["auto", "plain", "json", "none"])
    function = click.option(
        "--progress", type=choice, default="auto", envvar="POCKETCLOUD_PROGRESS", help="How progress is shown on stderr."
    )(function)
    return click.option("-v", "--verbose", count=True, help="Say more: every step of the plan.")(function)


def lab_options(function: F) -> F:
    """What every lab command takes: the kit, the profile, progress."""
    function = click.option(
        "--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help="Shape machines by this profile."
    )(function)
    return kit_option(progress_options(function))


def wait_option(function: F) -> F:
    """`--no-wait`."""
    return click.option("--no-wait", is_flag=True, help="Fail at once if another command works on the lab.")(function)


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
    """The kit a command means; with `make` the default one is made if there is none at all."""
    from pocketcloud.errors import NotFound
    from pocketcloud.kit.attached import Places, attached_kits, find_kit
    from pocketcloud.kit.directory import init_directory

    places = Places.from_environment()
    try:
        return find_kit(places, kit_name)
    except NotFound:
        if not make or attached_kits(places) or kit_name not in (None, "default"):
            raise
    kit = init_directory(places, places.default, None, now=now())
    click.echo(f"Made the default kit in {kit.path}.", err=True)
    return kit


def instance_name(text: str) -> Name:
    """A name from the command line; raises UsageError with the rule."""
    from pocketcloud.model.names import Name

    try:
        return Name.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def open_bench(kit: Kit, view: View, *, profile_name: str | None, wait: bool = True) -> Workbench:
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
    )


def is_path(text: str) -> bool:
    """Whether a LAB argument is a path: it holds `/` or ends in `.yaml`."""
    return "/" in text or text.endswith((".yaml", ".yml"))


def here_lab() -> Path:
    """`lab.yaml` of the current folder, for a command without LAB; raises UsageError if there is none."""
    path = Path("lab.yaml")
    if not path.exists():
        raise UsageError("which lab? There is no lab.yaml here", hint="name one: pocketcloud lab list shows them; or give a path")
    return path
