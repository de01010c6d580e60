# SPDX-License-Identifier: Apache-2.0
"""Brings the testbed up and takes it down.

`up` writes into the record what it is about to make, then makes it. `down` undoes the record
and nothing else, in any state: it is also what `up` does first with a testbed that is broken.
"""

import contextlib
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from devicemount_testbed import cgroups, control_plane, network, node
from devicemount_testbed.build import build_components
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.commands import run
from devicemount_testbed.crun import crun_version, make_crun
from devicemount_testbed.errors import CommandFailed, ComponentDied, NotRunning
from devicemount_testbed.layout import DATA, Layout
from devicemount_testbed.loading import load_everywhere
from devicemount_testbed.locking import exclusive
from devicemount_testbed.preflight import prepare_machine
from devicemount_testbed.processes import (
    Process,
    children_of,
    is_running,
    keep_descriptors_private,
    kill_and_wait,
    spawn_gated,
    start_ticks,
)
from devicemount_testbed.record import Record, boot_id, save
from devicemount_testbed.record import load as load_record
from devicemount_testbed.report import say, took
from devicemount_testbed.stock_images import make_stock_images
from devicemount_testbed.topology import NODES, Node, netns_names
from devicemount_testbed.waiting import wait_until

RELAY = "relay"
API_READY_S = 60.0
NODE_READY_S = 120.0
BIRTH_S = 10.0
KILL_S = 30.0
# the kubelet, and systemd the first, set these for the whole machine
SYSCTLS = (
    "fs/file-max",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def up(layout: Layout) -> None:
    """Start the testbed; return at once if it runs."""
    keep_descriptors_private()
    with exclusive(layout):
        if is_healthy(layout):
            say(f"already running, kubeconfig {layout.kubeconfig}")
            return
        prepare_machine(layout)
        _take_down(layout)
        network.refuse_leftovers()
        _build(layout)
        began = time.monotonic()
        archives = make_stock_images(layout)
        _start(layout, archives)
        say(f"up in {took(began)}, kubeconfig {layout.kubeconfig}")


def build(layout: Layout) -> None:
    """Build the programs only: a real API server for tests needs no nodes."""
    with exclusive(layout):
        prepare_machine(layout)
        _build(layout)


def _build(layout: Layout) -> None:
    build_components(layout)
    make_crun(layout)


def down(layout: Layout) -> None:
    """End the testbed and remove all that it made; fine if there is none."""
    with exclusive(layout):
        _take_down(layout)


@contextlib.contextmanager
def stopped(layout: Layout, name: str) -> Iterator[None]:
    """Kill a process of the control plane, and start it again when the block ends."""
    with exclusive(layout):
        record = load_record(layout.record)
        process = record.process(name) if record is not None else None
        if record is None or process is None:
            raise NotRunning(state=layout.state)
        component = next(c for c in _control_plane(layout) if c.name == name)
        kill_and_wait(process, seconds=KILL_S)
        save(record.without(process), layout.record)
        try:
            yield
        finally:
            _spawn(layout, name, argv=component.argv)
    _await_api_server(layout)


def is_healthy(layout: Layout) -> bool:
    """Answer whether every process lives and every node is Ready."""
    record = load_record(layout.record)
    expected = {RELAY, *(component.name for component in _control_plane(layout))}
    expected |= {name for each in NODES for name in (each.name, node.init_component(each.name))}
    if record is None or {p.component for p in record.processes if is_running(p)} != expected:
        return False
    try:
        return all(ready_nodes(Testbed(layout=layout, record=record)).values())
    except CommandFailed:
        return False


def ready_nodes(testbed: Testbed) -> dict[str, bool]:
    """Map every registered node's name to whether it is Ready."""
    nodes = json.loads(testbed.kubectl("get", "nodes", "--output=json", "--request-timeout=5s"))
    return {
        item["metadata"]["name"]: any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in item["status"].get("conditions", ())
        )
        for item in nodes["items"]
    }


def _control_plane(layout: Layout) -> tuple[control_plane.Component, ...]:
    return (
        control_plane.etcd(layout),
        control_plane.api_server(layout),
        control_plane.controller_manager(layout),
        control_plane.scheduler(layout),
    )


def _start(layout: Layout, archives: Sequence[Path]) -> None:
    shutil.rmtree(layout.log, ignore_errors=True)
    layout.log.mkdir(parents=True)
    with _listener() as listener:
        port = int(listener.getsockname()[1])
        save(_plan(layout, port), layout.record)
        network.make_network()
        control_plane.make_credentials(layout, outside_url=f"https://127.0.0.1:{port}")
        _start_relay(layout, listener)
    for component in _control_plane(layout):
        _spawn(layout, component.name, argv=component.argv)
    for each in NODES:
        _start_node(layout, each)
    _await_api_server(layout)
    testbed = Testbed.from_record(layout)
    testbed.kubectl("apply", f"--filename={DATA / 'runtime-classes.yaml'}")
    for each in NODES:
        _await_containerd(layout, each)
    load_everywhere(testbed, archives)
    _await_nodes(layout)


def _plan(layout: Layout, port: int) -> Record:
    """Say what is about to be made and what is about to be changed."""
    return Record(
        boot_id=boot_id(),
        relay_port=port,
        netns=netns_names(),
        cgroups=tuple(each.cgroup_name for each in NODES),
        made_netns_dir=not network.NETNS_DIR.exists(),
        controllers=cgroups.delegated_controllers(),
        sysctls={name: _sysctl(name).read_text().strip() for name in SYSCTLS},
        crun=crun_version(layout),
    )


def _take_down(layout: Layout) -> None:
    record = load_record(layout.record)
    if record is None:
        return
    began = time.monotonic()
    for process in record.processes:
        kill_and_wait(process, seconds=KILL_S)
    for name in record.cgroups:
        cgroups.remove_cgroup(name)
    cgroups.restore_delegation(record.controllers)
    network.remove_network(record.netns)
    if record.made_netns_dir:
        with contextlib.suppress(OSError):  # somebody else may have put a namespace there since
            network.NETNS_DIR.rmdir()
    for name, value in record.sysctls.items():
        _sysctl(name).write_text(value)
    # the record goes last: until then another `down` can take over
    for path in layout.state.iterdir():
        if path != layout.record:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(layout.state)
    say(f"down in {took(began)}")


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.set_inheritable(True)
    return listener


def _start_relay(layout: Layout, listener: socket.socket) -> None:
    argv = [sys.executable, "-m", "devicemount_testbed.relay", str(listener.fileno())]
    _spawn(layout, RELAY, argv=argv)


def _start_node(layout: Layout, which: Node) -> None:
    cgroups.remove_cgroup(which.cgroup_name)  # the kubelet cannot adopt an old one on v2
    cgroups.make_cgroup(which)
    node.write_files(layout, which)
    environment = node.environment(layout, which)
    outer = _spawn(layout, which.name, argv=node.start_command(which), env=environment)
    component = node.init_component(which.name)

    def is_born() -> bool:
        for pid in children_of(outer.pid):
            ticks = start_ticks(pid)
            if ticks is not None:
                _remember(layout, Process(component=component, pid=pid, start_ticks=ticks))
                return True
        return False

    hint = f"see {layout.log_of(which.name)}"
    wait_until(is_born, what=f"PID 1 of {which.name}", seconds=BIRTH_S, hint=hint)


def _spawn(
    layout: Layout, name: str, *, argv: Sequence[str], env: Mapping[str, str] | None = None
) -> Process:
    """Start a process and record it before it runs."""
    gated = spawn_gated(argv, component=name, log=layout.log_of(name), env=env)
    _remember(layout, gated.process)
    gated.open()
    return gated.process


def _remember(layout: Layout, process: Process) -> None:
    record = load_record(layout.record)
    if record is None:
        raise NotRunning(state=layout.state)
    save(record.with_process(process), layout.record)


def _await_api_server(layout: Layout) -> None:
    testbed = Testbed.from_record(layout)
    began = time.monotonic()

    def is_ready() -> bool:
        _raise_if_dead(testbed)
        ask = testbed.kubectl_command("get", "--raw=/readyz", "--request-timeout=2s")
        return run(ask, env=testbed.kubectl_environment).returncode == 0

    hint = f"see {layout.log_of('kube-apiserver')}"
    wait_until(is_ready, what="API server ready", seconds=API_READY_S, hint=hint)
    say(f"API server ready after {took(began)}")


def _await_containerd(layout: Layout, which: Node) -> None:
    testbed = Testbed.from_record(layout)

    def answers() -> bool:
        _raise_if_dead(testbed)
        return testbed.exec(which, ["ctr", "version"]).returncode == 0

    hint = f"see {layout.log_of(f'{which.name}-containerd')}"
    wait_until(answers, what=f"containerd of {which.name}", seconds=NODE_READY_S, hint=hint)


def _await_nodes(layout: Layout) -> None:
    testbed = Testbed.from_record(layout)
    began = time.monotonic()

    def are_ready() -> bool:
        _raise_if_dead(testbed)
        ready = ready_nodes(testbed)
        return all(ready.get(each.name, False) for each in NODES)

    hint = f"see the kubelet logs in {layout.log}"
    wait_until(are_ready, what="nodes Ready", seconds=NODE_READY_S, hint=hint)
    say(f"nodes Ready after {took(began)}")


def _raise_if_dead(testbed: Testbed) -> None:
    for process in testbed.record.processes:
        if not is_running(process):
            log = testbed.layout.log_of(process.component)
            raise ComponentDied(component=process.component, log=log)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name
