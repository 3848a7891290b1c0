"""How far a bootstrap is and why it failed, from lines as mmdebstrap, apt and dpkg print them."""

from __future__ import annotations

from pocketcloud.bases.progress import Progress, cause

LINES = """\
I: running apt-get update...
Get:1 http://kernel.org/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://kernel.org/debian bookworm/main amd64 dpkg amd64 1.21 [20.0 kB]
Get:2 http://kernel.org/debian bookworm/main amd64 tar amd64 1.34 [20.0 kB]
I: extracting archives...
Unpacking dpkg (1.21) ...
Unpacking tar (1.34) ...
Setting up dpkg (1.21) ...
Setting up tar (1.34) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://kernel.org/debian bookworm/main amd64 initramfs-tools amd64 0.142 [20.0 kB]
Unpacking initramfs-tools (0.142) ...
Setting up initramfs-tools (0.142) ...
update-initramfs: Generating /boot/initrd.img-6.1.0
""".splitlines()


def test_progress_follows_the_packages() -> None:
    said: list[tuple[str, float]] = []
    progress = Progress(lambda text, fraction: said.append((text, fraction)), 0.0, 0.5)
    for line in LINES:
        progress.line(line)
    fractions = [fraction for _, fraction in said]
    assert fractions == sorted(fractions)
    assert 0.48 < fractions[-1] <= 0.5
    assert len(set(fractions)) > 8
    assert ("setting up tar", 0.22) in said
    assert said[-1][0] == "making the initramfs"


def test_the_lines_that_explain_are_found() -> None:
    why = cause("I: fine\nErr:1 http://x bookworm InRelease\n  Could not resolve 'x'\nE: Failed to fetch http://x\nI: more\n")
    assert why.lines == ("Err:1 http://x bookworm InRelease", "E: Failed to fetch http://x")
    assert (why.network, why.trust, why.full) == (True, False, False)
    assert cause("W: GPG error: http://x InRelease: NO_PUBKEY 0E98404D386FA1D9\nE: apt-get update failed").trust
    assert cause("dpkg: error: cannot write: No space left on device").full


def test_silence_is_answered_with_the_last_lines() -> None:
    assert cause("\n".join(f"line {number}" for number in range(20)), most=3).lines == ("line 17", "line 18", "line 19")
    assert cause("").lines == ()
