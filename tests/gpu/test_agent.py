# SPDX-License-Identifier: Apache-2.0
"""A GPU in containers that were started without one, by a whole agent; kubelet, CRI and NVIDIA's
device plugin are stand-ins, the driver and what computes are not.
"""

import logging
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from component.agent.conftest import Node
from devicemount_agent.nvml import DRIVER
from devicemount_agent_api.v1 import agent_pb2 as pb

from .cuda import asking, computing, cuda_error
from .notebooks import Kind, Notebooks

LATER_S = 3600
SUCCESS, NO_DEVICE = 0, 100  # CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE
SOMEBODY = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all")

pytestmark = pytest.mark.skipif(
    not Path("/", DRIVER).is_dir(), reason=f"no /{DRIVER} on this machine"
)
log = logging.getLogger(__name__)


@pytest.fixture
def uuid(minors: Mapping[str, int]) -> str:
    """Return one GPU of this machine."""
    return min(minors, key=lambda uuid: minors[uuid])


def blocking(state: pb.MountState) -> list[str]:
    """Return the command lines of those that the device is not taken from."""
    found = (one for shadow in state.shadow_pods for one in shadow.holders)
    return [one.command for one in found if one.blocking]


async def test_a_gpu_comes_to_a_running_container_and_goes(
    node: Node, notebooks: Notebooks, uuid: str, minors: Mapping[str, int]
) -> None:
    notebook = notebooks.start()
    assert cuda_error(*notebook.inside) == NO_DEVICE
    notebook.forget_device_files()
    async with node.agent():
        shadow = notebooks.reserved(notebook, uuid)
        granted = await node.apply(notebook.target, shadow)
        log.info("granted after %s us", dict(sorted(granted.timings_us.items())))

        assert granted.phase == pb.GRANTED
        assert [list(shadow.concerns) for shadow in granted.shadow_pods] == [[]]
        files = notebook.device_files()
        assert {f"/dev/nvidia{minors[uuid]}", "/dev/nvidiactl", "/dev/nvidia-uvm"} <= files.keys()
        assert files == {path: Path(path).stat().st_rdev for path in files}
        assert notebook.refused(*files) == set()
        params = notebook.run("cat", "/proc/driver/nvidia/params").stdout
        assert "ModifyDeviceFiles: 0\n" in params
        if shutil.which("nvidia-smi"):
            assert uuid in notebook.run("nvidia-smi", "-L").stdout

        with computing(*notebook.inside) as one:
            busy = await node.remove(notebook.target)
            assert busy.phase == pb.BUSY
            (command,) = blocking(busy)
            assert "libcuda.so.1" in command
            one.once_more()
            with computing(*notebook.inside):  # nothing was revoked
                pass

        assert (await node.remove(notebook.target)).phase == pb.REMOVED
        assert notebook.device_files() == {}
    assert cuda_error(*notebook.inside) == NO_DEVICE
    if notebooks.kind is Kind.OWN_USERS:
        return
    notebook.forget_device_files()
    for path, rdev in files.items():  # by the container's own right
        os.mknod(notebook.target.box.root / path.lstrip("/"), 0o20666, rdev)
    assert notebook.refused(*files) == {f"{path} Operation not permitted" for path in files}
    assert cuda_error(*notebook.inside) == NO_DEVICE


async def test_whoever_the_container_runs_as_computes(
    node: Node, notebooks: Notebooks, uuid: str
) -> None:
    notebook = notebooks.start()
    async with node.agent():
        await node.apply(notebook.target, notebooks.reserved(notebook, uuid))
        with computing(*notebook.inside, *SOMEBODY):
            pass
        assert (await node.remove(notebook.target)).phase == pb.REMOVED
    assert cuda_error(*notebook.inside, *SOMEBODY) == NO_DEVICE


async def test_who_computes_is_ended_where_that_is_asked_for(
    node: Node, notebooks: Notebooks, uuid: str
) -> None:
    notebook = notebooks.start()
    async with node.agent():
        await node.apply(notebook.target, notebooks.reserved(notebook, uuid))
        with computing(*notebook.inside) as one:
            gone = await node.remove(notebook.target, policy=pb.TERMINATE, grace_s=LATER_S)
            assert gone.phase == pb.REMOVED
            assert one.process.wait(5) in {-signal.SIGTERM, 128 + signal.SIGTERM}  # runc's way
    assert notebook.run("true").returncode == 0, "the main process did not compute"
    assert cuda_error(*notebook.inside) == NO_DEVICE


async def test_of_two_time_slices_one_goes_while_the_other_computes(
    node: Node, notebooks: Notebooks, uuid: str
) -> None:
    notebook, other = notebooks.start(), notebooks.start()
    async with node.agent():
        await node.apply(notebook.target, notebooks.reserved(notebook, uuid, replica="::0"))
        await node.apply(other.target, notebooks.reserved(other, uuid, replica="::1"))
        with computing(*other.inside) as one:
            with computing(*notebook.inside):
                pass
            assert (await node.remove(notebook.target)).phase == pb.REMOVED
            one.once_more()
            with computing(*other.inside):
                pass
        assert cuda_error(*notebook.inside) == NO_DEVICE
        assert (await node.remove(other.target)).phase == pb.REMOVED


async def test_who_computes_is_not_disturbed_while_the_agent_is_replaced(
    node: Node, notebooks: Notebooks, uuid: str
) -> None:
    notebook = notebooks.start()
    async with node.agent():
        await node.apply(notebook.target, notebooks.reserved(notebook, uuid))
    with computing(*notebook.inside) as one:
        async with node.agent():
            assert [state.phase for state in await node.states()] == [pb.GRANTED]
            one.once_more()
            assert len(blocking(await node.remove(notebook.target))) == 1
    async with node.agent():
        assert (await node.remove(notebook.target)).phase == pb.REMOVED
    assert cuda_error(*notebook.inside) == NO_DEVICE


async def test_who_was_told_that_there_is_no_device_may_ask_cuda_again(
    node: Node, notebooks: Notebooks, uuid: str
) -> None:
    notebook = notebooks.start()
    with asking(*notebook.inside) as early:
        assert early.first == NO_DEVICE
        async with node.agent():
            shadow = notebooks.reserved(notebook, uuid)
            granted = await node.apply(notebook.target, shadow)
            assert granted.phase == pb.GRANTED, "over what CUDA has made itself, too"
            assert early.once_more() == SUCCESS
            hidden = cuda_error(*notebook.inside, "env", "CUDA_VISIBLE_DEVICES=")
            assert hidden == NO_DEVICE, "what the variable hides stays hidden"
