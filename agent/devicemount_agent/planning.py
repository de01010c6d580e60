# SPDX-License-Identifier: Apache-2.0
"""What a grant is going to make in a container: the intent that says so before anything is made.

Pure: survey.py looks at the container, grafts.py writes what comes of it to the journal.
"""

from dataclasses import dataclass, replace

from devicemount_agent.graft.edits import Plan
from devicemount_agent.ledger import Earlier, Grant, Ledger
from devicemount_agent.model import Bound, ContainerID


@dataclass(frozen=True, slots=True)
class Planned:
    """What a grant will make in a container, as it was just before its intent."""

    kept: frozenset[Bound]  # what the same grant brought before, and may not want any more
    edits: Plan
    nodes: frozenset[str]  # that do not stand there, with their directories
    hosted: frozenset[str]  # that the node has under the number that they get


def intent_of(
    grant: Grant,
    planned: Planned,
    ledger: Ledger,
    container_id: ContainerID,
    earlier: tuple[Earlier, ...],
) -> Grant:
    """Return the grant as the journal is to know it before anything is made."""
    made = planned.nodes | planned.edits.made
    former = ledger.grants.get(grant.shadow.uid)
    if former is not None and former.container_id == container_id:
        made |= former.made
    ours = {b.place for other in ledger.in_container(container_id) for b in other.bound}
    standing = planned.edits.standing
    bound = {b.place: b for b in planned.kept}
    bound |= {b.place: b for b in planned.edits.bound if b not in standing or b.place in ours}
    return replace(
        grant,
        earlier=earlier,
        made=made,
        bound=frozenset(bound.values()),
        linked=planned.edits.linked,
        hosted=planned.hosted | (grant.hosted & grant.withheld),
    )
