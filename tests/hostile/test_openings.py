# SPDX-License-Identifier: Apache-2.0
"""While a device is granted and revoked again and again, what the container has of its own opens
every time, and what nobody gave it never does: on both cgroup versions, at every single open.
"""

from functools import partial
from pathlib import Path

from devicemount_agent.container.cgroup import CgroupVersion
from devicemount_agent.graft import graft
from devicemount_agent.model import DeviceNode, DeviceNumber
from node.agent import programs
from node.agent.containers import NULL, Lab

from .conftest import count

GRANTS = count("GRANTS", 40)
OPENS = count("OPENS", 20_000)
OWN = DeviceNumber("c", 1, 5)  # as if the container had it from its start
FORBIDDEN = DeviceNumber("c", 1, 8)  # harmless, and nobody gives it
FILES = {"/dev/null": NULL, "/dev/zero": OWN, "/dev/random": FORBIDDEN}


def allow_own(lab: Lab, cgroup: Path) -> None:
    if lab.version is CgroupVersion.V2:
        lab.keep(programs.attach(cgroup, programs.allow_list([NULL, OWN])))
        return
    lab.allow_null_only(cgroup)
    (cgroup / "devices.allow").write_text("c 1:5 rwm")


def test_own_devices_open_always_and_forbidden_ones_never(either: Lab, vcsa: DeviceNode) -> None:
    box = either.container(restrict=partial(allow_own, either))
    nodes = [DeviceNode(path, path, number, vcsa.access) for path, number in FILES.items()]
    graft.place(box, [*nodes, vcsa])
    earlier = graft.earlier(box, [vcsa.number])
    box.inside.tell("keep_opening", ["/dev/null", "/dev/zero"], ["/dev/random"])

    def opens() -> int:
        return box.inside.tell("count_opened", "allowed") or 0

    granted = 0
    while granted < GRANTS or opens() < OPENS:
        graft.permit(box, {vcsa.number: vcsa.access}, earlier=earlier)
        assert box.inside.can_open("/dev/vcsa"), granted
        graft.permit(box, {}, earlier=earlier)
        assert not box.inside.can_open("/dev/vcsa"), granted
        granted += 1
    box.inside.tell("end_opening")
    assert box.inside.tell("count_opened", "refused") == 0
    assert box.inside.tell("count_opened", "forbidden") == 0
    assert vcsa.number not in graft.allowed(box)
