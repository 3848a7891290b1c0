"""Listening to installers: what ends a build, what explains it, and how far it is. Pure: words in, a judgement out."""

from __future__ import annotations

import random

import pytest

from pocketcloud.bases.install import anaconda, debian, ubuntu
from pocketcloud.bases.install.machine import CONSOLE, End, Outcome
from pocketcloud.bases.install.signs import Signs, Stages
from pocketcloud.bases.install.watching import PORT, Failure, Fault, Watch
from pocketcloud.model.profile import Deadlines
from pocketcloud.model.sizes import Duration

BUILD = "0123456789ab"
QUICK = Deadlines(idle=Duration(60), total=Duration(1000))
INSTALLERS = {"anaconda": anaconda.SIGNS, "debian": debian.SIGNS, "ubuntu": ubuntu.SIGNS}


class Told:
    """Progress, kept."""

    def __init__(self) -> None:
        self.said: list[tuple[str, float]] = []

    def __call__(self, text: str, fraction: float) -> None:
        self.said.append((text, fraction))


class Heard:
    """A watch on a clock of its own."""

    def __init__(self, signs: Signs = anaconda.SIGNS, deadlines: Deadlines = QUICK) -> None:
        self.told = Told()
        self.now = 0.0
        self.watch = Watch(BUILD, signs, Stages(signs.stages, self.told), deadlines)
        assert not self.watch.enough(self.now)

    def say(self, *lines: str, source: str = CONSOLE, after: float = 1.0) -> bool:
        """Each line a second after the one before; whether it has heard enough."""
        for line in lines:
            self.now += after
            self.watch.hear(source, f"{line}\r\n".encode(), self.now)
            if self.watch.enough(self.now):
                return True
        return False

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.watch.enough(self.now)

    def failure(self, end: End = End.STOPPED) -> Failure:
        failure = self.watch.failure(Outcome(end, self.now))
        assert failure is not None
        return failure


def test_the_marker_and_a_clean_end_are_success() -> None:
    heard = Heard()
    heard.say("Starting automated install....", "Complete!")
    heard.say(f"OK {BUILD}", source=PORT)
    assert not heard.wait(5)
    assert heard.watch.failure(Outcome(End.OFF, heard.now)) is None


def test_what_it_took_before_it_was_sealed_is_heard() -> None:
    heard = Heard()
    heard.say("USED 99", source=CONSOLE)
    heard.say("USED x", "USED -5", "USED 1234567890", "FAILED", "USED", source=PORT)
    assert heard.watch.used == 1234567890
    heard.say(f"OK {BUILD}", source=PORT)
    assert heard.watch.failure(Outcome(End.OFF, heard.now)) is None


@pytest.mark.parametrize("end", [End.KILLED, End.CRASHED, End.FULL, End.STUCK])
def test_a_marker_without_a_clean_end_is_none(end: End) -> None:
    heard = Heard()
    heard.say(f"OK {BUILD}", source=PORT)
    assert heard.failure(end).fault.value == end.value


def test_off_without_a_marker_is_a_failure() -> None:
    heard = Heard()
    heard.say("Complete!", "[  100.1] reboot: Power down")
    assert heard.failure(End.OFF).fault is Fault.UNMARKED
    assert "reboot: Power down" in heard.failure(End.OFF).lines[-1]


def test_the_marker_of_another_build_is_none() -> None:
    heard = Heard()
    heard.say("OK ffffffffffff", source=PORT)
    assert heard.failure(End.OFF).fault is Fault.TOLD


def test_the_marker_on_the_console_is_none() -> None:
    heard = Heard()
    heard.say(f"OK {BUILD}")
    assert heard.failure(End.OFF).fault is Fault.UNMARKED


def test_a_failed_step_is_named_with_what_it_said() -> None:
    heard = Heard()
    heard.say("pocketcloud: sealing", "dnf: error: no such command")
    heard.say("FAIL sealing", source=PORT)
    assert heard.wait(3)
    failure = heard.failure()
    assert "'sealing'" in failure.why
    assert "dnf: error: no such command" in failure.lines


def test_a_step_is_text_and_no_more() -> None:
    heard = Heard()
    heard.watch.hear(PORT, b"FAIL \x1b[2J\x07" + b"x" * 100_000 + b"\n", 1.0)
    assert heard.failure().why.isprintable()
    assert len(heard.failure().why) < 300


KNOWN = [
    ("anaconda", "Traceback (most recent call last):"),
    ("anaconda", "The following problem occurred on line 12 of the kickstart file:"),
    ("anaconda", "Error code 1 running the kickstart script at line 40"),
    ("anaconda", "packaging: Missed: NoSuchPackage: nonesuch"),
    ("anaconda", "Payload setup error: Failed to download metadata for repo"),
    ("anaconda", "storage configuration failed: Not enough space in file systems"),
    ("anaconda", "Cannot enable the following services because they are not installed: nosuch"),
    ("anaconda", "Running in cmdline mode, no interactive debugging allowed."),
    ("anaconda", "################# Anaconda installer errors begin #################"),
    ("anaconda", "[   12.3] Kernel panic - not syncing: Attempted to kill init!"),
    ("anaconda", "[   92.0] Out of memory: Killed process 1234 (anaconda)"),
    ("debian", "!! ERROR: No network interfaces detected"),
    ("debian", "[Press enter to continue]"),
    ("debian", "Prompt: '?' for help, default=1> "),
    ("ubuntu", "An error occurred. Press enter to start a shell"),
    ("ubuntu", "Continue with autoinstall? (yes|no)"),
]


@pytest.mark.parametrize(("installer", "line"), KNOWN)
def test_every_known_failure_ends_it_at_once(installer: str, line: str) -> None:
    heard = Heard(INSTALLERS[installer])
    heard.say("the line before")
    assert not heard.say(line), "the lines after it are waited for"
    heard.say("the line after", after=0.5)
    assert heard.wait(2)
    lines = heard.failure().lines
    assert ["the line before", line.strip(), "the line after"] == list(lines)


def test_a_question_is_seen_without_its_line_end() -> None:
    heard = Heard(debian.SIGNS)
    heard.watch.hear(CONSOLE, b"Low memory mode\r\nPrompt: '?' for help> ", 1.0)
    assert heard.watch.enough(5.0)
    assert heard.failure().lines == ("Low memory mode", "Prompt: '?' for help>")


@pytest.mark.parametrize("line", ["CRIT systemd-coredump: x dumped core", "unknown configuration item in Traceback ("])
def test_what_lorax_ignores_is_no_failure(line: str) -> None:
    heard = Heard()
    heard.say(line, source=anaconda.SIGNS.log)
    assert not heard.wait(10)


def test_the_installers_log_counts_too() -> None:
    heard = Heard()
    heard.say("ERR dnf: Transaction check error:", source=anaconda.SIGNS.log)
    assert heard.wait(3)
    assert heard.failure().lines == ("ERR dnf: Transaction check error:",)


def test_a_reboot_ends_it_before_and_after_the_marker() -> None:
    for marked in (False, True):
        heard = Heard()
        if marked:
            heard.say(f"OK {BUILD}", source=PORT)
        heard.say("[   99.0] reboot: Restarting system")
        assert heard.wait(3)
        assert heard.failure(End.OFF).fault is Fault.REBOOTED


def test_words_after_the_marker_are_no_failure() -> None:
    heard = Heard()
    heard.say(f"OK {BUILD}", source=PORT)
    heard.say("Call Trace:", "Traceback (most recent call last):")
    assert heard.watch.failure(Outcome(End.OFF, heard.now)) is None


def test_silence_is_ended_by_the_idle_deadline() -> None:
    heard = Heard()
    heard.say("Installing bash.x86_64 (1/2)")
    assert not heard.wait(59)
    assert heard.wait(1)
    assert heard.failure().fault is Fault.SILENT
    assert "1 min 00 s" in heard.failure().why


def test_silence_after_the_marker_is_ended_too() -> None:
    heard = Heard()
    heard.say(f"OK {BUILD}", source=PORT)
    assert heard.wait(60)
    assert "after it had reported success" in heard.failure().why


def test_a_loop_is_no_sign_of_life() -> None:
    """Only the kernel's clock, the time of day and a process number change."""
    heard = Heard()
    ended = heard.say(*(f"[{n:5}.123456] dracut-initqueue[{n}]: 10:{n % 60:02}:07 still waiting" for n in range(100)))
    assert ended
    assert heard.failure().fault is Fault.SILENT


@pytest.mark.parametrize("seed", range(20))
def test_a_loop_is_none_wherever_the_reading_stops(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    text = b"".join(b"[%7d.%02d] dracut-initqueue: timeout, still waiting\r\n" % (n, n % 100) for n in range(20000))
    heard, at = Heard(), 0
    while not heard.watch.enough(heard.now):
        assert at < len(text), "it was taken for alive to the end"
        size = chance.choice((1, 3, 20, 60, 2000))
        heard.now += 0.5
        heard.watch.hear(CONSOLE, text[at : at + size], heard.now)
        at += size
    assert heard.failure().fault is Fault.SILENT


def test_work_is_one() -> None:
    heard = Heard()
    assert not heard.say(*(f"Installing package-{n}.noarch ({n}/900)" for n in range(900)))
    heard = Heard(debian.SIGNS)
    for percent in range(0, 100, 2):
        heard.now += 19
        heard.watch.hear(CONSOLE, f"... {percent}%".encode(), heard.now)
        assert not heard.watch.enough(heard.now)


def test_the_total_deadline_ends_what_works_for_ever() -> None:
    heard = Heard()
    assert heard.say(*(f"something new {n}" for n in range(1001)))
    assert heard.failure().fault is Fault.LATE


def test_a_flood_ends_it() -> None:
    heard = Heard()
    noise = b"\r" * (30 << 20)
    for _ in range(3):
        assert not heard.watch.enough(1.0)
        heard.watch.hear("org.example.0", noise, 1.0)
    assert heard.watch.enough(1.0)
    assert heard.failure().fault is Fault.FLOOD


STAGES = {
    "anaconda": [
        "[    0.0] Linux version 6.12",
        "Starting installer, one moment...",
        "Starting automated install....",
        "Downloading 412 RPMs, 1.5 MiB / 500 MiB (0%) done.",
        "Downloading 412 RPMs, 250 MiB / 500 MiB (50%) done.",
        "Installing bash.x86_64 (1/412)",
        "Installing zlib.x86_64 (412/412)",
        "Configuring kernel-core.x86_64",
        "Installing boot loader",
        "Performing post-installation setup tasks",
        "Configuring installed system",
        "Generating initramfs",
        "Storing configuration files and kickstarts",
        "Running post-installation scripts",
        "Complete!",
    ],
    "debian": [
        "Linux version 6.1",
        "Detecting network hardware  ... 95%... 100%",
        "Loading additional components  ... 20%",
        "Starting up the partitioner  ... 6%",
        "Installing the base system  ... 10%... 20%",
        "Installing the base system  ... 10%... 20%... 80%",
        "Select and install software  ... 10%",
        "Finishing the installation  ... 20%",
    ],
    "ubuntu": [
        "Linux version 6.8",
        "start: subiquity/Early/apply_autoinstall_config:",
        "start: subiquity/Install/install: installing system",
        "start: subiquity/Install/install/postinstall: final system configuration",
        "start: subiquity/Late/run:",
        "start: subiquity/Shutdown/shutdown: mode=POWEROFF",
    ],
}


@pytest.mark.parametrize("installer", INSTALLERS)
def test_the_bar_follows_the_installer(installer: str) -> None:
    heard = Heard(INSTALLERS[installer], Deadlines(idle=Duration(1000), total=Duration(9000)))
    steps = []
    for line in STAGES[installer]:
        assert not heard.say(line)
        steps.append(heard.told.said[-1])
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(set(fractions)), steps
    assert 0 < fractions[0] < 0.1
    assert fractions[-1] >= 0.9
    heard.say(STAGES[installer][0])
    assert heard.told.said[-1] == steps[-1], "it never goes back"


def test_numbers_that_mean_nothing_do_no_harm() -> None:
    heard = Heard()
    heard.say(
        "Installing x.noarch (5/0)", "Installing x.noarch (99999999999999999999/3)", "Downloading 1 RPMs, x (999999%) done."
    )
    assert all(0 <= fraction <= 1 for _, fraction in heard.told.said)
