# SPDX-License-Identifier: Apache-2.0
"""Which runtime a container is of, by CRI's verbose answer, or by its pod's runtime handler where
that does not say (CRI-O). Virtual machines, kernels in user space and WebAssembly are refused by
name: what the agent can change on the node they do not look at.

A runtime that is not known by its name is judged by what its process is (also in graft/shape.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from devicemount_agent.errors import UnsupportedRuntime

_SHIM_OF_RUNC = "io.containerd.runc."  # of crun, youki, nvidia-container-runtime too: by its binary
_HANDLER_OF_CRI_O = "io.kubernetes.cri-o.RuntimeHandler"
_SANDBOXES = {
    "kata": "Kata Containers, a virtual machine",
    "runsc": "gVisor, a kernel in user space",
    "gvisor": "gVisor, a kernel in user space",
    "krun": "libkrun, a virtual machine",
    "urunc": "urunc, a unikernel in a virtual machine",
    "firecracker": "Firecracker, a virtual machine",
    "runhcs": "Hyper-V, a virtual machine",
    "wasm": "WebAssembly",
    "spin": "Spin, WebAssembly",
    "slight": "SpiderLightning, WebAssembly",
    "lunatic": "Lunatic, WebAssembly",
    "wws": "Wasm Workers Server, WebAssembly",
}

# What CRI calls the container's process is then a virtual machine or a kernel in user space.
_PROGRAMS = (
    "qemu",
    "cloud-hypervisor",
    "firecracker",
    "stratovirt",
    "crosvm",
    "runsc",
    "containerd-shim-kata",  # with the hypervisor in it
)


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What the runtime says of how it runs a container; each empty where it does not say."""

    type: str = ""  # containerd's: "io.containerd.runc.v2"
    binary: str = ""  # of the shim's options: "/usr/bin/crun"
    handler: str = ""  # crun's own: "wasm", "krun"
    allows_all: bool = False  # its device rules end with all devices: a privileged container
    has_own_users: bool | None = None  # a user namespace was asked for; None: it does not say

    def names(self) -> tuple[str, ...]:
        """Return the names by which it can be known."""
        return self.type, PurePosixPath(self.binary).name, self.handler

    def is_known(self) -> bool:
        """Tell whether it is known to make containers of the node's own kernel."""
        return self.type.startswith(_SHIM_OF_RUNC)


UNKNOWN = RuntimeFacts()


def check_supported(runtime: RuntimeFacts) -> None:
    """Raise UnsupportedRuntime, naming it."""
    for name in runtime.names():
        _check_name("runtime", name)


def check_handler(name: str) -> None:
    """Raise UnsupportedRuntime, naming it, for what an administrator calls a sandboxed runtime."""
    _check_name("runtime handler", name)


def check_program(process: Path) -> None:
    """Raise UnsupportedRuntime if this process, a directory of /proc, is no container's.

    Raises FileNotFoundError, ProcessLookupError; it may have been another's: the caller looks.
    """
    program = (process / "exe").readlink().name.removeprefix("memfd:")
    if program.startswith(_PROGRAMS):
        raise UnsupportedRuntime(f"its process is {program}: a sandboxed runtime")


def _check_name(what: str, name: str) -> None:
    for mark, kind in _SANDBOXES.items():
        if mark in name:
            raise UnsupportedRuntime(f"its {what} is {name}: {kind}")


def facts_from(info: str) -> RuntimeFacts:
    """Parse what containerd and CRI-O put under "info" of a verbose ContainerStatus."""
    said = _object(json.loads(info)) if info else {}
    spec, options = _object(said.get("runtimeSpec")), _object(said.get("runtimeOptions"))
    resources = _object(_object(spec.get("linux")).get("resources"))
    namespaces = _object(spec.get("linux")).get("namespaces")
    annotations = _object(spec.get("annotations"))
    handler = annotations.get("run.oci.handler") or annotations.get("module.wasm.image/variant")
    return RuntimeFacts(
        type=_text(said.get("runtimeType")),
        binary=_text(options.get("BinaryName") or options.get("binary_name")),
        handler="wasm" if "module.wasm.image/variant" in annotations else _text(handler),
        allows_all=_allows_all(resources.get("devices")),
        has_own_users=_has_own_users(namespaces),
    )


def handler_from(info: str) -> str:
    """Parse what CRI-O puts under "info" of a verbose PodSandboxStatus."""
    said = _object(json.loads(info)) if info else {}
    annotations = _object(_object(said.get("runtimeSpec")).get("annotations"))
    return _text(annotations.get(_HANDLER_OF_CRI_O))


def _has_own_users(namespaces: object) -> bool | None:
    if not isinstance(namespaces, list):
        return None
    return any(_object(namespace).get("type") == "user" for namespace in namespaces)


def _allows_all(rules: object) -> bool:
    """Judge by the rules about all devices: the last one holds."""
    allowed = False
    for rule in map(_object, rules if isinstance(rules, list) else ()):
        of_all = rule.get("major") is None and rule.get("minor") is None
        if of_all and rule.get("type") in {None, "", "a"} and "w" in _text(rule.get("access")):
            allowed = rule.get("allow") is True
    return allowed


def _object(found: object) -> dict[str, object]:
    return cast(dict[str, object], found) if isinstance(found, dict) else {}


def _text(found: object) -> str:
    return found if isinstance(found, str) else ""
