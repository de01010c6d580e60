# SPDX-License-Identifier: Apache-2.0
"""What stands against what spec wants: which shadow pods are too many, what is missing, and whether
it can be had at all.

Devices can be given back by whole shadow pods only, and none that is wanted still is given back for
one that is not: an edit that would need this cannot be carried out. What holds no device yet is
worth nothing and makes room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from devicemount_operator.decide.observation import (
    GrantPhase,
    Observation,
    ShadowPod,
    TargetPod,
    choice,
    container_of,
    holds,
    is_placed,
)
from devicemount_operator.decide.text import listing

Counts = Mapping[str, int]  # resource -> devices

MAX_SUMS: Final = (
    1024  # looked at to find whole shadow pods that add up: whoever has odd ones waits
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All empty: it is as it is wanted."""

    moved: tuple[ShadowPod, ...] = ()  # granted to another container than is meant now
    idle: tuple[ShadowPod, ...] = ()  # hold nothing yet and would be too many, or too small a part
    surplus: tuple[ShadowPod, ...] = ()  # hold what is not wanted any more
    lacking: Counts = field(default_factory=dict)  # for one more shadow pod, when these are gone
    problem: str = ""  # why whole shadow pods cannot make up what is wanted

    @property
    def is_exact(self) -> bool:
        """Say whether nothing is to be given back or reserved."""
        return not (self.moved or self.idle or self.surplus or self.lacking or self.problem)


def fit(observation: Observation) -> Fit:
    """Compare what stands for the target with what is wanted. Pure and total."""
    wanted: Counts = observation.mount.spec.resources.limits
    there = _of_target(observation)
    moved = tuple(shadow for shadow in there if _is_elsewhere(observation, shadow))
    held = [s for s in there if s not in moved and holds(observation.grant_of(s))]
    idle = [s for s in there if s not in moved and s not in held]
    excess = _minus(_sum(held), wanted)
    youngest_first = held[::-1]
    cheapest = sorted(youngest_first, key=lambda s: _dearness(observation, s))
    surplus = _adding_up(cheapest, excess)
    if surplus is None:
        return Fit(moved=moved, idle=tuple(idle), problem=_problem(held, wanted, excess))
    lacking = _minus(wanted, _sum(s for s in held if s not in surplus))
    kept = _fitting(observation, idle, lacking)
    return Fit(
        moved=moved,
        idle=tuple(shadow for shadow in idle if shadow not in kept),
        surplus=surplus,
        lacking=_minus(lacking, _sum(kept)),
    )


def is_busy(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether its agent was asked to take its devices back and found processes that have them
    open."""
    grant = observation.grant_of(shadow)
    return grant is not None and grant.phase is GrantPhase.BUSY


def is_revoked(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether its holders are being ended already."""
    grant = observation.grant_of(shadow)
    return is_busy(observation, shadow) and grant is not None and grant.granted_wall is None


def _of_target(observation: Observation) -> tuple[ShadowPod, ...]:
    """Return what stands for the target pod; what a former one left is given back elsewhere."""
    pod = observation.target
    if not isinstance(pod, TargetPod):
        return observation.standing
    return tuple(shadow for shadow in observation.standing if shadow.place.target_uid == pod.uid)


def _is_elsewhere(observation: Observation, shadow: ShadowPod) -> bool:
    """Say whether another container has its devices than the one that is meant, which exists."""
    pod, grant = observation.target, observation.grant_of(shadow)
    if not isinstance(pod, TargetPod) or grant is None or not holds(grant):
        return False
    meant = choice(observation.mount.spec.target, pod)
    return meant is not None and container_of(observation, grant) not in (meant.name, None)


def _dearness(observation: Observation, shadow: ShadowPod) -> int:
    """Return an order in which to give back: what is being ended, what nobody is known to have
    open, what somebody has."""
    if is_revoked(observation, shadow):
        return 0
    return 2 if is_busy(observation, shadow) else 1


def _adding_up(shadows: Sequence[ShadowPod], excess: Counts) -> tuple[ShadowPod, ...] | None:
    """Return the first of these that together hold exactly the excess, and nothing else."""
    names = sorted(excess)
    goal = tuple(excess[name] for name in names)
    reached: dict[tuple[int, ...], tuple[ShadowPod, ...]] = {(0,) * len(names): ()}
    for shadow in shadows:
        if goal in reached:
            break
        if not shadow.resources.keys() <= excess.keys():
            continue
        for sums, chosen in tuple(reached.items()):
            more = tuple(
                n + shadow.resources.get(name, 0) for n, name in zip(sums, names, strict=True)
            )
            is_within = all(n <= most for n, most in zip(more, goal, strict=True))
            if is_within and len(reached) < MAX_SUMS:
                reached.setdefault(more, (*chosen, shadow))
    return reached.get(goal)


def _fitting(
    observation: Observation, idle: Iterable[ShadowPod], lacking: Counts
) -> tuple[ShadowPod, ...]:
    """Return those that are not too many: one that has no node yet only if nothing more is missing,
    since then one shadow pod asks for all of it or gets nothing."""
    placed: list[ShadowPod] = []
    waiting: list[ShadowPod] = []
    room = lacking
    for shadow in sorted(idle, key=lambda s: not is_placed(observation, s)):  # the oldest first
        if all(count <= room.get(name, 0) for name, count in shadow.resources.items()):
            (placed if is_placed(observation, shadow) else waiting).append(shadow)
            room = _minus(room, shadow.resources)
    return (*placed, *(waiting if not room else ()))


def _sum(shadows: Iterable[ShadowPod]) -> Counts:
    total: dict[str, int] = {}
    for shadow in shadows:
        for name, count in shadow.resources.items():
            total[name] = total.get(name, 0) + count
    return total


def _minus(one: Counts, other: Counts) -> Counts:
    """Return by how much the one exceeds the other, where it does."""
    rest = {name: count - other.get(name, 0) for name, count in one.items()}
    return {name: count for name, count in rest.items() if count > 0}


def _problem(held: Iterable[ShadowPod], wanted: Counts, excess: Counts) -> str:
    """Say which count cannot be had, and what the shadow pods hold that would have to go."""
    name = min(excess)
    parts = [
        f"{shadow.name} ({_counts(shadow.resources)})"
        for shadow in held
        if name in shadow.resources
    ]
    return f"{wanted.get(name, 0)} {name} are wanted, and whole shadow pods hold: {listing(parts)}"


def _counts(resources: Counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items()))
