# SPDX-License-Identifier: Apache-2.0
"""Builds Kubernetes, etcd, containerd, runc and CNI plugins from Go modules into the cache.

Versions are those of the go.mod files beside this package; nothing else is downloaded.
A component is built again only when its sources, its flags or the Go release change.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from devicemount_testbed.commands import output_of, run_with_progress
from devicemount_testbed.layout import COMPONENTS, Layout
from devicemount_testbed.preflight import go_program

KUBERNETES_VERSION = "1.37.2"
RUNC_VERSION = "1.5.2"
VERSION_VARIABLE = "k8s.io/component-base/version.git"
# one binary that acts by the name it is called by, as busybox does: 150 MB instead of 600
KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)


@dataclass(frozen=True, slots=True)
class Component:
    """One program: `module` is a directory of components/, `package` a Go package."""

    output: str
    module: str
    package: str
    tags: str = ""
    linker_flags: str = "-s -w"
    cgo: str = "0"
    links: tuple[str, ...] = field(default=())


def _node_component(package: str) -> Component:
    return Component(
        output=package.rpartition("/")[2],
        module="node",
        package=package,
        tags="no_btrfs no_devmapper no_zfs",
    )


CONTAINERD = "github.com/containerd/containerd/v2/cmd"
CNI = "github.com/containernetworking/plugins/plugins"
ALL = (
    Component(
        output="kube",
        module="kubernetes",
        package=".",
        tags="selinux notest providerless",
        linker_flags=f"-s -w -X {VERSION_VARIABLE}Version=v{KUBERNETES_VERSION}"
        f" -X {VERSION_VARIABLE}Major=1 -X {VERSION_VARIABLE}Minor=37",
        links=KUBERNETES_PROGRAMS,
    ),
    Component(output="etcd", module="etcd", package="go.etcd.io/etcd/server/v3"),
    _node_component(f"{CONTAINERD}/containerd"),
    _node_component(f"{CONTAINERD}/containerd-shim-runc-v2"),
    _node_component(f"{CONTAINERD}/ctr"),
    _node_component(f"{CNI}/main/bridge"),
    _node_component(f"{CNI}/main/loopback"),
    _node_component(f"{CNI}/ipam/host-local"),
    Component(
        output="runc",
        module="node",
        package="github.com/opencontainers/runc",
        tags="seccomp",
        linker_flags=f"-s -w -X main.version={RUNC_VERSION}",
        cgo="1",
    ),
    Component(
        output="runc-devices-only", module="devices_only", package=".", links=("crun-devices-only",)
    ),
)

# What only some tests need: they build it, see build_now.
SAMPLE_DEVICE_PLUGIN = Component(
    output="sample-device-plugin",
    module="kubernetes",
    package="k8s.io/kubernetes/test/images/sample-device-plugin",
)
NVIDIA_CDI = Component(output="nvidia-cdi", module="nvidia_cdi", package=".", cgo="1")
NVIDIA_CDI_HOOK = Component(
    output="nvidia-cdi-hook",
    module="nvidia_cdi",
    package="github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook",
    cgo="1",
)
GITOPS_HEALTH = Component(output="gitops-health", module="gitops_health", package=".")
CERT_MANAGER = Component(output="cert-manager", module="cert_manager", package=".")
CERT_MANAGER_MODULE = "github.com/cert-manager/cert-manager"


def build_components(layout: Layout) -> None:
    """Build what is missing or stale of all that a node needs."""
    _build_stale(layout, ALL)


def build_now(layout: Layout, component: Component) -> Path:
    """Build a program that is not a node's, if it is missing or stale, and return its path."""
    _build_stale(layout, (component,))
    return layout.bin / component.output


def _build_stale(layout: Layout, components: tuple[Component, ...]) -> None:
    layout.bin.mkdir(parents=True, exist_ok=True)
    go = go_program()
    release = output_of([go, "env", "GOVERSION"]).strip()
    for component in components:
        stamp = layout.bin / ".stamps" / component.output
        inputs = _inputs_hash(component, release)
        if _is_current(layout.bin / component.output, stamp=stamp, inputs=inputs):
            continue
        _build(component, go=go, layout=layout)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(inputs)


def _build(component: Component, *, go: str, layout: Layout) -> None:
    draft = layout.bin / f".{component.output}.draft"  # a running program's file is not opened
    argv = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", component.linker_flags]
    if component.tags:
        argv += ["-tags", component.tags]
    run_with_progress(
        [*argv, "-o", str(draft), component.package],
        what=f"building {component.output}",
        log=layout.log_of(f"build-{component.output}"),
        env={**os.environ, "CGO_ENABLED": component.cgo},
        cwd=COMPONENTS / component.module,
    )
    draft.replace(layout.bin / component.output)
    for name in component.links:
        link = layout.bin / name
        link.unlink(missing_ok=True)
        link.symlink_to(component.output)


def _inputs_hash(component: Component, release: str) -> str:
    digest = hashlib.sha256(f"{component}{release}".encode())
    for path in sorted((COMPONENTS / component.module).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _is_current(program: Path, *, stamp: Path, inputs: str) -> bool:
    return program.exists() and stamp.exists() and stamp.read_text() == inputs
