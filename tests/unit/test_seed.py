"""seed.py: the image read back, and its documents judged by cloud-init's own schema check."""

from __future__ import annotations

import io
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pycdlib
import pytest
from ruamel.yaml import YAML

from pocketcloud.keys import new_key
from pocketcloud.seed import Seed, SeedNic, meta_data, network_config, user_data, write_seed

SEED = Seed(
    instance_id="demo.web-1",
    hostname="web",
    domain="demo.test",
    host_key=new_key("web"),
    authorized_keys=(new_key("kit").public, new_key('a "user": [&x, *x] # !!python/name:os.system').public),
    nics=(SeedNic("52:54:00:AB:cd:01"), SeedNic("52:54:00:ab:cd:02")),
)
FILES = ("meta-data", "user-data", "network-config")


def read_back(path: Path, **where: str) -> str:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        content = io.BytesIO()
        iso.get_file_from_iso_fp(content, **where)
        return content.getvalue().decode()
    finally:
        iso.close()


def test_the_image_is_what_nocloud_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, SEED)
    expected = dict(zip(FILES, (meta_data(SEED), user_data(SEED), network_config(SEED)), strict=True))
    for name in FILES:
        assert read_back(path, rr_path=f"/{name}") == expected[name]
        assert read_back(path, joliet_path=f"/{name}") == expected[name]
    image = path.read_bytes()
    # ECMA-119: the primary volume descriptor is sector 16, its volume identifier bytes 40 to 71.
    assert image[16 * 2048 + 1 : 16 * 2048 + 6] == b"CD001"
    assert image[16 * 2048 + 40 : 16 * 2048 + 72].rstrip() == b"CIDATA"
    # A virtio disk is made of sectors of 512 bytes.
    assert len(image) % 2048 == 0


@pytest.mark.skipif(not shutil.which("blkid", path="/usr/sbin:/sbin:/usr/bin"), reason="util-linux is not installed")
def test_the_label_is_seen_as_udev_sees_it(tmp_path: Path) -> None:
    write_seed(tmp_path / "seed.iso", SEED)
    blkid = shutil.which("blkid", path="/usr/sbin:/sbin:/usr/bin") or ""
    out = subprocess.run([blkid, "-p", "-o", "export", tmp_path / "seed.iso"], check=True, capture_output=True, text=True).stdout
    assert {"LABEL=CIDATA", "TYPE=iso9660"} <= set(out.splitlines())


def test_the_image_replaces_the_old_one_and_is_no_strangers_business(tmp_path: Path) -> None:
    path = tmp_path / "a seed"
    path.write_text("old")
    write_seed(path, SEED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["a seed"]
    assert read_back(path, rr_path="/user-data").startswith("#cloud-config\n")


def test_values_stay_values() -> None:
    """The same data whether it is read as JSON or as YAML, with nothing evaluated."""
    text = user_data(SEED)
    assert text.startswith("#cloud-config\n")
    as_json = json.loads(text.partition("\n")[2])
    assert YAML(typ="safe", pure=True).load(text) == as_json
    assert as_json["users"] == [{"name": "root", "lock_passwd": False, "ssh_authorized_keys": list(SEED.authorized_keys)}]
    assert as_json["ssh_keys"] == {"ed25519_private": SEED.host_key.private, "ed25519_public": SEED.host_key.public}
    assert (as_json["hostname"], as_json["fqdn"]) == ("web", "web.demo.test")


def test_the_network_is_found_by_mac() -> None:
    config = json.loads(network_config(SEED))
    assert [nic["match"]["macaddress"] for nic in config["ethernets"].values()] == ["52:54:00:ab:cd:01", "52:54:00:ab:cd:02"]
    assert [nic["set-name"] for nic in config["ethernets"].values()] == ["eth0", "eth1"], "the lab file's order"
    assert all(nic["dhcp4"] and nic["optional"] for nic in config["ethernets"].values())


def test_a_machine_without_domain_and_without_network() -> None:
    bare = Seed("i", "web", "", new_key("x"), (), ())
    assert bare.fqdn == "web"
    assert json.loads(network_config(bare)) == {"version": 2, "ethernets": {}}


@pytest.mark.parametrize("bad", ["two\nlines", "ü", "\x7f", "tab\t"])
def test_what_yaml_could_read_differently_does_not_get_in(bad: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Seed("i", bad, "", new_key("x"), (), ())


# --- cloud-init's own judgement ---

# Reads `schema-cloud-config-v1.json` through cloud-init's own code; `--annotate` and the like are not needed.
_CHECK = ("-m", "cloudinit.cmd.main", "schema", "--config-file")


@pytest.fixture(scope="module")
def cloud_init(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The argv of cloud-init's schema check: the host's own, or that of the distribution's package, unpacked, not installed."""
    if installed := shutil.which("cloud-init"):
        return [installed, "schema", "--config-file"]
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("cloud-init's own schema check cannot run: cloud-init is not installed, and without apt it cannot be fetched")
    folder = tmp_path_factory.mktemp("cloud-init")
    (folder / "debs" / "partial").mkdir(parents=True)
    # Only downloaded: an installed cloud-init would reconfigure this machine at its next boot.
    fetch = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "--download-only"]
    options = [f"-oDir::Cache::archives={folder / 'debs'}", "-oDebug::NoLocking=1", "-oAPT::Sandbox::User=root"]
    got = subprocess.run([*fetch, *options, "cloud-init"], capture_output=True, text=True, timeout=300)
    debs = sorted((folder / "debs").glob("*.deb"))
    if got.returncode != 0 or not debs:
        pytest.skip(f"cloud-init's own schema check cannot run: apt-get: {got.stderr.strip()[-400:] or 'nothing fetched'}")
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", deb, folder / "root"], check=True)
    packages = folder / "root" / "usr" / "lib" / "python3" / "dist-packages"
    return ["env", f"PYTHONPATH={packages}", "PYTHONWARNINGS=ignore", "/usr/bin/python3", *_CHECK]


def judged(cloud_init: list[str], path: Path, text: str) -> tuple[int, str]:
    path.write_text(text)
    done = subprocess.run([*cloud_init, str(path)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_cloud_init_takes_the_user_data(cloud_init: list[str], tmp_path: Path) -> None:
    code, said = judged(cloud_init, tmp_path / "user-data", user_data(SEED))
    assert code == 0, said
    assert "Valid" in said
    assert "eprecated" not in said


def test_cloud_init_would_tell_a_fault(cloud_init: list[str], tmp_path: Path) -> None:
    """The check above can fail."""
    code, said = judged(cloud_init, tmp_path / "user-data", user_data(SEED).replace('"localhost"', '"nonsense"'))
    assert code != 0
    assert "manage_etc_hosts" in said
