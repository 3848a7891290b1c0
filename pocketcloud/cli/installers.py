"""Options of commands that may start an installer: the profile that shapes its machine, and how long it may take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pocketcloud.errors import UsageError

if TYPE_CHECKING:
    from pocketcloud.bases.needs import Ground


def installer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --profile, --idle and --within; it gets what they come to as `here`, a function that gives a Ground."""

    @functools.wraps(function)
    def with_options(profile_name: str | None, idle: str | None, within: str | None, **given: Any) -> Any:
        return function(here=lambda: _ground(profile_name, idle, within), **given)

    wrapped: Callable[..., Any] = with_options
    wrapped = click.option("--within", metavar="TIME", help="End an installer that is not done by then (as 2h).")(wrapped)
    wrapped = click.option("--idle", metavar="TIME", help="End an installer from which nothing new comes for so long (as 10m).")(
        wrapped
    )
    profile = "Shape an installer's machine by this profile."
    return click.option("--profile", "profile_name", metavar="NAME", envvar="POCKETCLOUD_PROFILE", help=profile)(wrapped)


def _ground(profile_name: str | None, idle: str | None, within: str | None) -> Ground:
    from pocketcloud import profiles
    from pocketcloud.bases.needs import ground
    from pocketcloud.host import read_facts
    from pocketcloud.model.sizes import Duration

    if not (profile_name or idle or within):
        return ground()
    said: dict[str, Duration] = {}
    for option, key, text in (("--idle", "idle", idle), ("--within", "total", within)):
        try:
            said |= {key: Duration.parse(text)} if text else {}
        except ValueError as wrong:
            raise UsageError(f"{option}: {wrong}") from None
    profile = profiles.find(profile_name) if profile_name else profiles.choose(read_facts())
    deadlines = dataclasses.replace(profile.install, **said)
    return dataclasses.replace(ground(), profile=dataclasses.replace(profile, install=deadlines))
