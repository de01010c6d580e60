# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a vendor's device plugin: registers with the node's real kubelet and answers it.

It serves from the test's own process: the node's directory of sockets is reachable through the
root of its PID 1, and a test can change at any time what it answers.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_node_api import deviceplugin_pb2_grpc as rpc
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.waiting import wait_until
from vendor_answers import Entry
from vendors.answers import Marks, answer

DIRECTORY = Path("var/lib/kubelet/device-plugins")
CHECKPOINT = DIRECTORY / "kubelet_internal_checkpoint"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
CALL_S = 10.0
KNOWN_S = 10.0
POLL_S = 0.01  # a kubelet takes some milliseconds to write

Answer = Callable[[list[str]], pb.ContainerAllocateResponse]


class Refused(Exception):
    """What a plugin answers the kubelet instead of an allocation."""


class StandIn(rpc.DevicePluginServicer):
    """One resource. Its ids, their health and its answers may be changed while it is registered."""

    def __init__(self, resource: str, ids: Iterable[str], answer: Answer) -> None:
        self.resource = resource
        self.answer = answer
        self._health = dict.fromkeys(ids, HEALTHY)
        self._changed = threading.Condition()
        self._is_ended = False

    @property
    def healthy(self) -> set[str]:
        return {one for one, health in self._health.items() if health == HEALTHY}

    def offer(self, ids: Iterable[str], answer: Answer) -> None:
        """Have these devices from now on, and answer so."""
        self.answer = answer
        self._set(dict.fromkeys(ids, HEALTHY))

    def become(self, device: str, health: str) -> None:
        self._set({**self._health, device: health})

    def end(self) -> None:
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _set(self, health: dict[str, str]) -> None:
        with self._changed:
            self._health = health
            self._changed.notify_all()

    def GetDevicePluginOptions(
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> pb.DevicePluginOptions:
        return pb.DevicePluginOptions()

    def ListAndWatch(
        self, request: pb.Empty, context: grpc.ServicerContext
    ) -> Iterator[pb.ListAndWatchResponse]:
        told: dict[str, str] | None = None
        while (news := self._news_after(told)) is not None:
            told = news
            yield pb.ListAndWatchResponse(
                devices=[pb.Device(ID=one, health=health) for one, health in told.items()]
            )

    def _news_after(self, told: dict[str, str] | None) -> dict[str, str] | None:
        """Wait until there is something else to tell; None: this is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ended or self._health != told)
            return None if self._is_ended else self._health

    def Allocate(
        self, request: pb.AllocateRequest, context: grpc.ServicerContext
    ) -> pb.AllocateResponse:
        try:
            answers = [self.answer(list(one.devices_ids)) for one in request.container_requests]
        except Refused as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return pb.AllocateResponse(container_responses=answers)


@contextmanager
def registered(testbed: Testbed, node: str, *stand_ins: StandIn) -> Iterator[None]:
    """Keep them registered with the node's kubelet; return once it knows all their devices."""
    with ExitStack() as undo:
        for one in stand_ins:
            undo.enter_context(_registered(testbed, node, one))
        yield


@contextmanager
def _registered(testbed: Testbed, node: str, stand_in: StandIn) -> Iterator[None]:
    directory = testbed.node_root(node) / DIRECTORY
    socket = directory / f"standin-{secrets.token_hex(4)}.sock"
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    rpc.add_DevicePluginServicer_to_server(stand_in, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{directory}/kubelet.sock") as channel:
            request = pb.RegisterRequest(
                version="v1beta1", endpoint=socket.name, resource_name=stand_in.resource
            )
            rpc.RegistrationStub(channel).Register(request, timeout=CALL_S)
        await_known(testbed, node, stand_in)
        yield
    finally:
        stand_in.end()
        server.stop(grace=None).wait()
        socket.unlink(missing_ok=True)


def await_known(testbed: Testbed, node: str, stand_in: StandIn) -> None:
    """Return when the kubelet's checkpoint has exactly the stand-in's healthy devices."""
    wait_until(
        lambda: known(testbed, node).get(stand_in.resource, set()) == stand_in.healthy,
        what=f"the kubelet of {node} knows {stand_in.resource}",
        seconds=KNOWN_S,
        poll_s=POLL_S,
    )


def known(testbed: Testbed, node: str) -> dict[str, set[str]]:
    """Return the healthy ids by resource, as the kubelet has written them."""
    written = json.loads((testbed.node_root(node) / CHECKPOINT).read_text())["Data"]
    return {name: set(ids or ()) for name, ids in (written["RegisteredDevices"] or {}).items()}


def answering(entry: Entry, marks: Marks | None = None) -> Answer:
    """Answer what the file says for these ids."""

    def answer_for(ids: list[str]) -> pb.ContainerAllocateResponse:
        if unknown := set(ids) - set(entry.ids):
            raise Refused(f"{entry.resource}: {sorted(unknown)} are not the case's")
        return answer(entry, ids, marks or {})

    return answer_for


def refusing(message: str) -> Answer:
    def refuse(ids: list[str]) -> pb.ContainerAllocateResponse:
        raise Refused(message)

    return refuse
