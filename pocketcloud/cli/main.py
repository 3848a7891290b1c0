"""The entry point: the tree of commands, loaded only as far as one is used, and the one place where errors become exit codes.

Importing this must stay cheap: it is what `--help`, `--version` and completion cost.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pocketcloud import __version__

if TYPE_CHECKING:
    from pocketcloud.errors import PocketcloudError

# Noun: its module, and its help line, which is here so that `--help` loads no command.
_NOUNS = {
    "check": ("pocketcloud.cli.check", "Judge whether this host can carry labs, and say what to do."),
    "kit": ("pocketcloud.cli.kit", "Make, attach and detach kits, the stores that carry everything."),
    "base": ("pocketcloud.cli.base", "Build and list bases, the images that machines are cloned from."),
    "lab": ("pocketcloud.cli.lab", "Bring labs up, use them, reset them, remove them."),
    "cache": ("pocketcloud.cli.cache", "Keep what bases and labs need in the kit, for where there is no network."),
    "profile": ("pocketcloud.cli.profile", "Show how machines are shaped for each kind of host."),
}

# As sys.platform calls them.
_PLATFORMS = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows (Cygwin)"}

_EXIT_CODES = """
Exit codes: 0 done; 2 usage or a bad file; 3 the host lacks something; 4 not found; 5 refused or in use; 6 no space;
7 not ready in time; 8 partly done, run again; 130 interrupted; 1 a bug. `lab exec` and `lab ssh` pass the guest's on.

Completion, here for bash (zsh and fish likewise): eval "$(_POCKETCLOUD_COMPLETE=bash_source pocketcloud)"
"""


def _help_width() -> int:
    """The width of help texts, in columns. click would ask shutil, and loading that with its compressors costs as much as all
    of this module."""
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
    except (OSError, ValueError):
        columns = 80
    return max(min(columns, 110) - 2, 50)


class _Nouns(click.Group):
    """The group of nouns; a noun's module is imported when it is asked for."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_NOUNS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _NOUNS:
            return None
        command: click.Command = importlib.import_module(_NOUNS[cmd_name][0]).command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(noun, text) for noun, (_, text) in _NOUNS.items()])


@click.group(
    "pocketcloud",
    cls=_Nouns,
    epilog=_EXIT_CODES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "POCKETCLOUD",
        "terminal_width": _help_width(),
    },
)
@click.version_option(__version__, prog_name="pocketcloud")
def command() -> None:
    """A data centre in your pocket: bases, labs and resets on one disk that moves between computers.

    Start with `pocketcloud check`, then `pocketcloud base build debian-12` and `pocketcloud lab up demo`.
    """


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Errors are told on stderr, bugs with their traceback."""
    stdout = sys.stdout
    if sys.platform != "linux" and _needs_host(arguments):
        _say(f"pocketcloud runs on Linux, with QEMU and libvirt; this is {_PLATFORMS.get(sys.platform, sys.platform)}", "")
        return 3
    try:
        code: Any = command.main(arguments, prog_name="pocketcloud", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "pocketcloud"
        _say(error.format_message(), f"{where} --help")
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(arguments)
    except SystemExit as end:
        # click's way out of completion; and, with stdout replaced, where the reader is gone (`| head`): nobody is there to tell.
        return 141 if sys.stdout is not stdout else end.code if isinstance(end.code, int) else 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: anything unexplained is a bug, and is told as one
        from pocketcloud.errors import PocketcloudError  # not above: `--help` costs a tenth more with it

        return _explain(error, arguments) if isinstance(error, PocketcloudError) else _bug()
    return code if isinstance(code, int) else 0


def _needs_host(arguments: list[str]) -> bool:
    """Whether a command line does more than explain itself: help, the version and completion work everywhere."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return bool(arguments) and not {"-h", "--help", "--version"} & set(ours) and "_POCKETCLOUD_COMPLETE" not in os.environ


def _explain(error: PocketcloudError, arguments: list[str]) -> int:
    if error.exit_code == 130:
        return _interrupted(arguments)
    _say(error.message or type(error).__name__, error.hint)
    return error.exit_code


def _say(message: str, hint: str) -> None:
    from pocketcloud.cli.view import fit  # not above: `--help` would load it, too

    first, *rest = (fit(line) for line in message.splitlines())
    _tell(click.style("error: ", fg="red", bold=True) + first)
    for line in rest:
        _tell(f"  {line}")
    if hint:
        _tell(click.style("next:  ", bold=True) + fit(hint))


def _tell(line: str) -> None:
    """Write a line to stderr. Who read it may be gone (an ssh connection that broke): the exit code still says what there is to
    say."""
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        # What is left in buffers has to go somewhere: the interpreter would end with another code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _interrupted(arguments: list[str]) -> int:
    changes = arguments[:2] in (
        ["lab", "up"],
        ["lab", "reset"],
        ["lab", "down"],
        ["lab", "destroy"],
        ["lab", "snapshot"],
        ["lab", "restore"],
        ["lab", "undo"],
        ["lab", "forget"],
        ["base", "build"],
        ["cache", "sync"],
    )
    again = f"; what is done is kept, to go on: pocketcloud {' '.join(arguments)}" if changes else ""
    _tell(f"\ninterrupted{again}")
    return 130


def _bug() -> int:
    import traceback

    traceback.print_exc()
    click.echo(
        f"\nThis is a bug in pocketcloud {__version__} (Python {sys.version.split()[0]}). Please report it with the lines above"
        " and the command you ran.",
        err=True,
    )
    return 1
