# SPDX-License-Identifier: Apache-2.0
"""Which of the free devices a container should rather get: a hint, the kubelet decides.

Devices of one NUMA node rather than of several, different devices rather than replicas of one, and
of these the ones with most free replicas, so that sharers spread.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from devicemount_plugin.config import DeviceID

DeviceOf = Callable[[DeviceID], str]
NumaNodeOf = Callable[[DeviceID], int | None]


def prefer(
    available: Sequence[DeviceID],
    *,
    must_include: Sequence[DeviceID],
    size: int,
    device_of: DeviceOf,
    numa_node_of: NumaNodeOf,
) -> list[DeviceID]:
    """Choose `size` ids: those that must be included first, then the best of the others."""
    chosen = list(must_include)
    others = sorted(set(available) - set(chosen))
    while len(chosen) < size and others:
        best = _best(others, chosen, size=size, device_of=device_of, numa_node_of=numa_node_of)
        others.remove(best)
        chosen.append(best)
    return chosen


def _best(
    others: Sequence[DeviceID],
    chosen: Sequence[DeviceID],
    *,
    size: int,
    device_of: DeviceOf,
    numa_node_of: NumaNodeOf,
) -> DeviceID:
    used = Counter(device_of(one) for one in chosen)
    free = Counter(device_of(one) for one in others)
    near = {numa_node_of(one) for one in chosen}
    wanted = size - len(chosen)
    room = Counter(numa_node_of(one) for one in {device_of(o): o for o in others}.values())

    def rank(one: DeviceID) -> tuple[bool, bool, int, int, int]:
        node = numa_node_of(one)
        return (
            bool(near) and node not in near,
            room[node] < wanted,  # a NUMA node that has room for all
            used[device_of(one)],
            room[node],  # and of these the fullest, so that larger wishes find room later
            -free[device_of(one)],
        )

    return min(others, key=lambda one: (rank(one), one))
