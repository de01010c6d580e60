# SPDX-License-Identifier: Apache-2.0
"""The command `devicemount-testbed`."""

import argparse
import os
import sys
from pathlib import Path

from devicemount_testbed import lifecycle
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.deploy import deploy
from devicemount_testbed.errors import CommandFailed, TestbedError, UnknownComponent
from devicemount_testbed.images import archive_of, build_images, find_repository, write_release
from devicemount_testbed.layout import Layout, default_layout
from devicemount_testbed.loading import load_everywhere
from devicemount_testbed.locking import exclusive
from devicemount_testbed.node import inside_environment
from devicemount_testbed.preflight import install_packages
from devicemount_testbed.processes import is_running
from devicemount_testbed.report import say

REST = argparse.REMAINDER


def main() -> None:
    arguments = _parser().parse_args()
    try:
        _run(arguments, default_layout())
    except TestbedError as error:
        say(str(error))
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devicemount-testbed", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start the cluster; return at once if it runs")
    verbs.add_parser("down", help="end it and remove everything that it made")
    verbs.add_parser("build", help="build Kubernetes and all else that nodes run; up does so too")
    verbs.add_parser("kubeconfig", help="print the path of the kubeconfig")
    verbs.add_parser("status", help="show processes and nodes")
    verbs.add_parser("images", help="build the images of this checkout, and archives in dist/")
    verbs.add_parser("deploy", help="build, load and deploy this checkout; restart what changed")
    # no prefix character: what follows is kubectl's, options too
    kubectl = verbs.add_parser(
        "kubectl", help="run kubectl against the cluster", prefix_chars="\0", add_help=False
    )
    kubectl.add_argument("argv", nargs=REST, metavar="...")
    inside = verbs.add_parser("exec", help="run a program in a node: exec NODE -- CMD")
    inside.add_argument("node")
    inside.add_argument("argv", nargs=REST, metavar="-- CMD")
    loaded = verbs.add_parser("load", help="load an image into all nodes")
    loaded.add_argument("image", help="an archive, or a name in the testbed's image store")
    logs = verbs.add_parser("logs", help="print logs")
    logs.add_argument("component", nargs="?", help="kube-apiserver, node1, node1-kubelet, ...")
    return parser


def _run(arguments: argparse.Namespace, layout: Layout) -> None:
    match arguments.verb:
        case "up":
            lifecycle.up(layout)
        case "down":
            lifecycle.down(layout)
        case "build":
            lifecycle.build(layout)
        case "kubeconfig":
            print(Testbed.from_record(layout).kubeconfig)
        case "status":
            _status(layout)
        case "images":
            with exclusive(layout):
                _images(layout, find_repository(Path.cwd()))
        case "deploy":
            with exclusive(layout):
                deploy(layout, find_repository(Path.cwd()))
        case "kubectl":
            _kubectl(layout, arguments.argv)
        case "exec":
            _exec(layout, node=arguments.node, argv=arguments.argv)
        case "load":
            with exclusive(layout):
                _load(layout, arguments.image)
        case "logs":
            _logs(layout, arguments.component)


def _images(layout: Layout, repository: Path) -> None:
    """Build; say where the archives are and how a node takes them."""
    install_packages(layout)
    build_images(layout, repository)
    for name, archive in write_release(layout, repository, directory=repository / "dist").items():
        print(f"{archive.relative_to(repository)}  {name}")
    print("into a node's containerd:  ctr --namespace k8s.io images import FILE")
    print("into a node's Docker:      docker load --input FILE")


def _status(layout: Layout) -> None:
    """Print one row for each process; exit 1 unless all is well."""
    testbed = Testbed.from_record(layout)
    try:
        ready = lifecycle.ready_nodes(testbed)
    except CommandFailed as error:
        say(str(error))
        ready = {}
    print(f"{'COMPONENT':<26}{'PID':<10}{'ALIVE':<8}READY")
    for process in testbed.record.processes:
        alive = "yes" if is_running(process) else "no"
        state = {True: "yes", False: "no", None: ""}[ready.get(process.component)]
        print(f"{process.component:<26}{process.pid:<10}{alive:<8}{state}".rstrip())
    if not lifecycle.is_healthy(layout):
        sys.exit(1)


def _kubectl(layout: Layout, argv: list[str]) -> None:
    testbed = Testbed.from_record(layout)
    command = testbed.kubectl_command(*argv)
    os.execve(command[0], command, testbed.kubectl_environment)  # noqa: S606  no shell is wanted


def _exec(layout: Layout, *, node: str, argv: list[str]) -> None:
    program = argv[1:] if argv[:1] == ["--"] else argv
    command = Testbed.from_record(layout).exec_command(node, program or ["bash"])
    os.execvpe(command[0], command, inside_environment(layout))  # noqa: S606  no shell is wanted


def _load(layout: Layout, image: str) -> None:
    testbed = Testbed.from_record(layout)
    archive = Path(image) if Path(image).is_file() else archive_of(layout, image)
    load_everywhere(testbed, [archive])


def _logs(layout: Layout, component: str | None) -> None:
    """Print the logs of one component (node1: all of the node's), or of all."""
    paths = sorted(layout.log.glob("*.log"))
    if component is not None:
        name = {"apiserver": "kube-apiserver"}.get(component, component)
        chosen = [p for p in paths if p.stem == name or p.stem.startswith(f"{name}-")]
        if not chosen:
            known = ", ".join(path.stem for path in paths) or "none yet"
            raise UnknownComponent(f"no log of {component!r}; logs: {known}")
        paths = chosen
    for path in paths:
        if len(paths) > 1:
            print(f"==> {path} <==")
        sys.stdout.write(path.read_text(errors="replace"))
