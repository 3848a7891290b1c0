#!/bin/sh
# Installs the packages that are named in `packages` beside it, one a line. Where there is a `proxy` they come by that and no other
# way, and from the sources in `pocketcloud.sources` or `pocketcloud.repo`, if there is one, in place of the system's own.
# Usage: packages.sh [FOLDER]: another folder than this file's
set -u
here=${1:-$(dirname "$0")}
root=${POCKETCLOUD_ROOT:-}
# Letters that mean nothing to a shell.
# shellcheck disable=SC2046
set -- $(cat "$here/packages")

if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  if [ -e "$here/proxy" ]; then
    APT_CONFIG=$(mktemp)
    export APT_CONFIG
    # The cache's lists are of their day, and count longer than a mirror's; it keeps no translations.
    {
      echo 'Acquire::Check-Valid-Until "false";'
      echo 'Acquire::Languages "none";'
      echo "Acquire::http::Proxy \"$(cat "$here/proxy")\";"
      if [ -e "$here/pocketcloud.sources" ]; then
        sources=$(mktemp -d)
        chmod 755 "$sources"
        cp "$here/pocketcloud.sources" "$sources"
        echo 'Dir::Etc::SourceList "/dev/null";'
        echo "Dir::Etc::SourceParts \"$sources\";"
      fi
    } >"$APT_CONFIG"
    chmod 644 "$APT_CONFIG"
  fi
  apt-get -q update && apt-get -q -y --no-install-recommends install -- "$@"
elif command -v dnf >/dev/null; then
  set -- --setopt=install_weak_deps=False install -- "$@"
  [ ! -e "$here/proxy" ] || set -- --setopt=proxy="$(cat "$here/proxy")" "$@"
  if [ -e "$here/pocketcloud.repo" ]; then
    repos=$(mktemp -d)
    # Signed as its own repositories are; dnf fills in variables.
    keys=$(sed -n 's/^gpgkey *= *//p' "$root"/etc/yum.repos.d/*.repo | grep -o 'file:[^, ]*' | sort -u | tr '\n' ' ')
    sed "s|^gpgkey=.*|gpgkey=$keys|" "$here/pocketcloud.repo" >"$repos/pocketcloud.repo"
    set -- --setopt=reposdir="$repos" "$@"
  fi
  dnf -y "$@"
elif command -v zypper >/dev/null; then
  zypper --non-interactive install --no-recommends -- "$@"
elif command -v apk >/dev/null; then
  apk add -- "$@"
else
  echo "none of apt-get, dnf, zypper and apk is in this system"
  false
fi
