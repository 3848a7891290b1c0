"""What machines get to find the kit's cache: the script run in a network of its own, and the seed that carries it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from pocketcloud.guest_cache import FINDER, finder
from pocketcloud.keys import new_key
from pocketcloud.seed import Seed, SeedNic, user_data

SEED = Seed("demo.web", "web", "demo.test", new_key("web"), (), (SeedNic("52:54:00:ab:cd:01"),))
# As in a machine, with an address whose network has the cache's host at .1; here that is an address of the same interface.
SCENE = """
set -eu
ip link set lo up
ip link add beside type veth peer name other
ip link set beside up
ip link set other up
ip addr add 10.99.1.7/24 dev beside
bash "$1"
bash "$1" --dnf
ip addr add 10.99.1.1/32 dev beside
python3 -m http.server --bind 10.99.1.1 3143 > /dev/null 2>&1 &
until bash -c ': < /dev/tcp/10.99.1.1/3143' 2> /dev/null; do sleep 0.05; done
bash "$1"
bash "$1" --dnf
bash "$1" --dnf
cat "$POCKETCLOUD_ROOT/etc/dnf/dnf.conf"
kill $!
wait $! || true
bash "$1"
bash "$1" --dnf
"""


def test_the_cache_is_found_while_it_is_served(tmp_path: Path) -> None:
    script = tmp_path / "finder"
    script.write_text(finder(3143))
    conf = tmp_path / "etc/dnf/dnf.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("[main]\nkeepcache=1\n")
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", SCENE, "scene", script],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "POCKETCLOUD_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    there = "[main]\nkeepcache=1\n# pocketcloud: the cache beside this lab\nproxy=http://10.99.1.1:3143\n"
    assert done.stdout == f"DIRECT\nhttp://10.99.1.1:3143\n{there}DIRECT\n", done.stderr
    assert conf.read_text() == "[main]\nkeepcache=1\n"


def test_the_script_is_good_shell(tmp_path: Path) -> None:
    script = tmp_path / "finder"
    script.write_text(finder(3143))
    subprocess.run(["shellcheck", script], check=True)


def test_a_seed_has_it_only_where_the_cache_is_served() -> None:
    assert "write_files" not in json.loads(user_data(SEED).removeprefix("#cloud-config\n"))
    served = json.loads(user_data(replace(SEED, cache_port=3143)).removeprefix("#cloud-config\n"))
    files = {file["path"]: file for file in served["write_files"]}
    assert files[FINDER]["permissions"] == "0755"
    assert "/dev/tcp/$net.1/3143" in files[FINDER]["content"]
    assert f'Proxy-Auto-Detect "{FINDER}"' in files["/etc/apt/apt.conf.d/90pocketcloud-cache"]["content"]
