"""Labs that we ship, brought up with real guests and used: without a network, from what the kit's cache was filled with."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from tests.labkit import LabKit, lab_kit

pytestmark = pytest.mark.slow

_RAISING = 1800.0
# Docker is used by hand, as a student would; the image is the lab's own.
_IN_DOCKER = """\
set -e
docker run --rm lab/web echo said in a container
docker exec web ls /www
networkctl --no-legend list | grep -E 'docker0|veth'
sed -i 's/it works/it is mine/' /srv/web/index.html
docker build --quiet --tag lab/mine /srv/web
docker run --detach --name mine --publish 8080:80 lab/mine
sleep 2
curl --fail --silent http://localhost:8080/
"""
_TASKS = """\
set -e
curl --fail --silent http://teacher/ > /root/tasks.txt
hostname -s > /srv/index.html
printf '%s\\n' '[Service]' 'ExecStart=/usr/bin/python3 -m http.server 80 --directory /srv' \
    '[Install]' 'WantedBy=multi-user.target' > /etc/systemd/system/page.service
systemctl enable --now page
until curl --silent http://localhost/ > /dev/null; do sleep 1; done
"""


@pytest.fixture(scope="module")
def kit() -> Iterator[LabKit]:
    with lab_kit() as made:
        for lab in ("docker", "training"):
            made.cli("cache", "add", "--lab", lab).expect(0, "is to keep base debian-12")
        made.cli("cache", "sync", timeout=900).expect(0, "complete")
        made.cli("base", "build", "debian-12", "--offline", timeout=900).expect(0, "is built")
        yield made


def points(kit: LabKit, lab: str) -> dict[str, bool]:
    """Which of a lab's checks passed."""
    told = json.loads(kit.cli("lab", "status", lab, "--checks", "-o", "json", timeout=300).out)
    return {check["check"]: check["verdict"] == "passed" for check in told["checks"]}


def address(kit: LabKit, lab: str, machine: str) -> str:
    """Where the host reaches a machine."""
    told = json.loads(kit.cli("lab", "status", lab, "-o", "json").expect(0).out)
    return str(next(found["address"] for found in told["machines"] if found["machine"] == machine))


def test_docker_builds_and_runs_containers_without_a_registry(kit: LabKit) -> None:
    kit.cli("lab", "up", "docker", "--offline", timeout=_RAISING).expect(0, "is up")
    with urllib.request.urlopen(f"http://{address(kit, 'docker', 'docker')}/", timeout=60) as page:
        assert page.read() == b"it works, in a container\n"
    assert points(kit, "docker") == {"page": True, "own-image": False, "own-page": False}
    used = kit.cli("lab", "exec", "docker", "docker", "--", "sh", "-c", _IN_DOCKER, timeout=900)
    used.expect(0, "said in a container", "index.html", "it is mine, in a container")
    interfaces = [line.split() for line in used.out.splitlines() if " docker0 " in line or " veth" in line]
    assert len(interfaces) >= 2, "the bridge, and the container that goes on"
    assert all(words[-1] == "unmanaged" for words in interfaces), "networkd leaves them to Docker"
    assert all(points(kit, "docker").values())
    kit.cli("lab", "reset", "docker", "-y", timeout=_RAISING).expect(0, "is back to clean")
    assert points(kit, "docker") == {"page": True, "own-image": False, "own-page": False}
    kit.cli("lab", "destroy", "docker", "-y", timeout=300).expect(0)


def test_a_course_counts_points_and_resets_one_student(kit: LabKit) -> None:
    kit.cli("lab", "up", "training", "--offline", timeout=_RAISING).expect(0, "is up")
    assert not any(points(kit, "training").values())
    kit.cli("lab", "exec", "training", "student-1", "--", "sh", "-c", _TASKS, timeout=600).expect(0)
    found = points(kit, "training")
    assert {name for name, passed in found.items() if passed} == {"tasks-1", "page-1", "service-1"}
    kit.cli("lab", "reset", "training", "student-1", "-y", timeout=_RAISING).expect(0, "is back to clean")
    assert not any(points(kit, "training").values())
    # The teacher is protected: -y does not answer for it.
    kit.cli("lab", "destroy", "training", "-y", timeout=300).expect(5, "teacher is protected")
    kit.cli("lab", "destroy", "training", "-y", "--protected", timeout=300).expect(0)
