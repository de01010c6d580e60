# SPDX-License-Identifier: Apache-2.0
"""A device by CDI with everything that a spec can bring: nodes, mounts, links and variables.

Made-up, but read by the node's real runtime: a plain pod with the device in its limits gets what
containerd makes of the spec and of NVIDIA's real hook for links.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from devicemount_node_api import deviceplugin_pb2 as pb
from devicemount_testbed.build import NVIDIA_CDI_HOOK, build_now
from devicemount_testbed.cluster import Testbed
from vendors.answers import Json
from vendors.node import NodeFiles, node_files
from vendors.plugin import StandIn, registered

RESOURCE = "cdi.example.com/board"
KIND = "cdi.example.com/board"
NAME = "one"
SPEC = "/var/run/cdi/cdi.example.com.json"
MAJOR = 241  # for local use; nothing is registered under it here
HOST = "/run/board"  # on the node: its own file system
VARIABLES = {"BOARD": "one", "BOARD_LIBRARY": "/usr/lib/board/libboard.so.1.2"}


@dataclass(frozen=True)
class Board:
    """The stand-in of one node."""

    node: str
    files: NodeFiles
    spec: Json

    def write_spec(self) -> None:
        self.files.file(SPEC, json.dumps(self.spec))

    def remove_spec(self) -> None:
        self.files.at(SPEC).unlink(missing_ok=True)


@contextmanager
def board(testbed: Testbed, node: str) -> Iterator[Board]:
    """Have the device on the node and its plugin registered; the spec is not written yet."""
    hook = build_now(testbed.layout, NVIDIA_CDI_HOOK)
    with node_files(testbed, node) as files:
        for minor, name in enumerate(("board0", "board-control")):
            files.device(
                {
                    "path": f"/dev/{name}",
                    "major": MAJOR,
                    "minor": minor,
                    "mode": "0660",
                    "uid": 0,
                    "gid": 44,
                }
            )
        files.file(f"{HOST}/lib/libboard.so.1.2", b"\x7fELF, a stand-in")
        files.file(f"{HOST}/firmware/a.bin", b"a")
        files.file(f"{HOST}/firmware/deep/b.bin", b"b")
        _listen(files, f"{HOST}/board.sock")
        made = Board(node, files, _spec(str(hook)))
        answer = pb.ContainerAllocateResponse(cdi_devices=[pb.CDIDevice(name=f"{KIND}={NAME}")])
        with registered(testbed, node, StandIn(RESOURCE, ("one", "two"), lambda ids: answer)):
            yield made


def _spec(hook: str) -> Json:
    links = ["libboard.so.1.2::/usr/lib/board/libboard.so.1", "../board0::/dev/by-name/board-one"]
    arguments = [word for link in links for word in ("--link", link)]
    return {
        "cdiVersion": "0.6.0",
        "kind": KIND,
        "containerEdits": {
            "env": ["BOARD_LIBRARY=/usr/lib/board/libboard.so.1.2"],
            "deviceNodes": [{"path": "/dev/board-control", "permissions": "rw"}],
            "mounts": [
                _mount(f"{HOST}/lib/libboard.so.1.2", "/usr/lib/board/libboard.so.1.2"),
                _mount(f"{HOST}/firmware", "/lib/firmware/board"),
                {
                    "hostPath": f"{HOST}/board.sock",
                    "containerPath": "/run/board.sock",
                    "options": ["nosuid", "nodev", "rbind", "rprivate"],
                },
            ],
            "hooks": [
                {
                    "hookName": "createContainer",
                    "path": hook,
                    "args": ["nvidia-cdi-hook", "create-symlinks", *arguments],
                }
            ],
        },
        "devices": [
            {
                "name": NAME,
                "containerEdits": {
                    "env": ["BOARD=one"],
                    "deviceNodes": [
                        {"path": "/dev/boards/first", "hostPath": "/dev/board0", "fileMode": 0o600}
                    ],
                },
            }
        ],
    }


def _mount(host: str, container: str) -> Json:
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    return {"hostPath": host, "containerPath": container, "options": options}


def _listen(files: NodeFiles, path: str) -> None:
    """Make a socket file; nobody needs to answer."""
    where = files.at(path)
    directory = os.open(where.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{directory}/{where.name}")
    finally:
        os.close(directory)
    files.forget(path)
