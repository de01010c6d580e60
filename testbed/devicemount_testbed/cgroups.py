# SPDX-License-Identifier: Apache-2.0
"""The cgroups below which each node's kubelet works: made before a node, removed after it.

Only directories of the testbed's own are touched. On the unified hierarchy a child has only
what its parent delegates, so the root's delegation is widened and put back at the end.
"""

import errno
from pathlib import Path

from devicemount_testbed.preflight import read_mounts, unified_root, v1_hierarchies
from devicemount_testbed.report import say
from devicemount_testbed.topology import CgroupDriver, CgroupVersion, Node
from devicemount_testbed.waiting import wait_until

CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")  # a new v1 cpuset is empty and takes no process
REMOVAL_S = 20.0


def make_cgroup(node: Node) -> None:
    """Make the node's top cgroup; an old one must be gone."""
    match node.cgroup:
        case CgroupVersion.V1:
            for hierarchy in _v1_roots():
                (hierarchy / node.cgroup_name).mkdir()
            _fill_cpuset(node.cgroup_name)
        case CgroupVersion.V2:
            root = unified_root()
            own = unified_cgroup(node)
            own.mkdir()
            # A cgroup that delegates takes no process, but systemd begins in its own and delegates.
            levels = (root,) if node.driver is CgroupDriver.SYSTEMD else (root, own)
            for controller in (root / "cgroup.controllers").read_text().split():
                for level in levels:
                    (level / "cgroup.subtree_control").write_text(f"+{controller}")


def unified_cgroup(node: Node) -> Path:
    """Return the node's top cgroup in the machine's unified hierarchy."""
    return unified_root() / node.cgroup_name


def remove_cgroup(name: str) -> None:
    """Remove the tree of this name from every hierarchy; its processes are dying or dead."""
    for root in (*_v1_roots(), unified_root()):
        tree = root / name
        wait_until(
            lambda tree=tree: _remove_tree(tree),  # type: ignore[misc]
            what=f"removal of {tree}",
            seconds=REMOVAL_S,
            hint="see its cgroup.procs",
        )


def delegated_controllers() -> tuple[str, ...]:
    """Return what the unified root delegates to its children now."""
    return tuple((unified_root() / "cgroup.subtree_control").read_text().split())


def restore_delegation(controllers: tuple[str, ...]) -> None:
    """Take back what was not delegated before, unless somebody's cgroups have come to use it."""
    control = unified_root() / "cgroup.subtree_control"
    for controller in sorted(set(control.read_text().split()) - set(controllers)):
        try:
            control.write_text(f"-{controller}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            say(f"{controller} stays delegated in {control.parent}: other cgroups use it")


def _v1_roots() -> tuple[Path, ...]:
    return tuple(sorted(set(v1_hierarchies(read_mounts()).values())))


def _fill_cpuset(name: str) -> None:
    root = v1_hierarchies(read_mounts())["cpuset"]
    for file in CPUSET_FILES:
        (root / name / file).write_text((root / file).read_text())


def _remove_tree(tree: Path) -> bool:
    """Remove bottom up; answer whether it is gone, so that the caller can try again."""
    if not tree.exists():
        return True
    for directory in sorted((p for p in tree.rglob("*") if p.is_dir()), reverse=True):
        _remove_one(directory)
    return _remove_one(tree)


def _remove_one(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
