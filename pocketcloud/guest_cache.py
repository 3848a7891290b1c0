"""How a machine comes to use the kit's cache: by looking, whenever it installs something, whether that is served beside it.

The host's address in a lab's network is the first one. A machine that is moved, or started where there is a network, finds no
cache there and goes its own way; nothing has to be undone.
Sources: apt.conf(5), Acquire::http::Proxy-Auto-Detect; apt-transport-http(1); dnf.conf(5), proxy.
"""

from __future__ import annotations

from typing import Any

FINDER = "/usr/local/sbin/pocketcloud-cache"
_UNIT = "/etc/systemd/system/pocketcloud-cache.service"
_MARK = "# pocketcloud: the cache beside this lab"

# $POCKETCLOUD_ROOT is for tests.
_FINDER = """\
#!/bin/bash
# By pocketcloud. Prints the proxy by which packages come from the kit's cache, or DIRECT where none is served.
# With --dnf it writes that into dnf's configuration, which cannot ask by itself.
find_cache() {
    for net in $(ip -4 -o addr show scope global | sed -n 's|.* inet \\([0-9.]*\\)\\.[0-9]*/24 .*|\\1|p'); do
        if timeout 2 bash -c ": < /dev/tcp/$net.1/%(port)d" 2> /dev/null; then
            echo "http://$net.1:%(port)d"
            return
        fi
    done
    echo DIRECT
}
if [ "${1:-}" = --dnf ]; then
    conf="${POCKETCLOUD_ROOT:-}/etc/dnf/dnf.conf"
    [ -f "$conf" ] || exit 0
    found=$(find_cache)
    sed -i '/^%(mark)s$/,+1d' "$conf"
    [ "$found" = DIRECT ] || printf '%%s\\nproxy=%%s\\n' '%(mark)s' "$found" >> "$conf"
    exit 0
fi
find_cache
"""

_SERVICE = f"""\
[Unit]
Description=Let dnf use the cache beside this lab, if there is one
ConditionPathExists=/etc/dnf/dnf.conf
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={FINDER} --dnf

[Install]
WantedBy=multi-user.target
"""

# The cache's lists are of their day, and count longer than a mirror's; it keeps no translations.
_APT = f"""\
Acquire::http::Proxy-Auto-Detect "{FINDER}";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
"""


def finder(port: int) -> str:
    """The script that looks for the cache at that port."""
    return _FINDER % {"port": port, "mark": _MARK}


def cloud_config(port: int) -> dict[str, Any]:
    """What a seed has for it."""
    files = {FINDER: (finder(port), "0755"), "/etc/apt/apt.conf.d/90pocketcloud-cache": (_APT, "0644"), _UNIT: (_SERVICE, "0644")}
    return {
        "write_files": [{"path": path, "content": text, "permissions": mode} for path, (text, mode) in files.items()],
        # A list is a command of its own, without a shell.
        "runcmd": [["sh", "-c", "! [ -f /etc/dnf/dnf.conf ] || systemctl enable --now pocketcloud-cache.service"]],
    }
