# SPDX-License-Identifier: Apache-2.0
"""A node that is being emptied: what was evicted from it is not reserved there anew, or the drain
would never end.

Only after a loss: a mount that is new may use a cordoned node, on which its target runs. So the
node is read only then, and a mount without trouble costs no request. Status remembers the loss for
an operator that starts meanwhile.
"""

from typing import Final

from devicemount_operator.decide import outcome
from devicemount_operator.decide.decision import Decision
from devicemount_operator.decide.needs import follows_loss, to_reserve
from devicemount_operator.decide.observation import Observation
from devicemount_operator.reasons import Reason

POLL_S: Final = 5.0  # is it uncordoned, is the target still there?


def draining(observation: Observation) -> Decision | None:
    """Something was taken away, and the target's node is not to get anything new."""
    pod, node = to_reserve(observation), observation.node
    if pod is None or node is None or node.name != pod.node or not node.leaving:
        return None
    if not follows_loss(observation):
        return None
    return outcome.waits(
        observation,
        reason=Reason.NODE_DRAINING,
        fact=f"node {node.name} {node.leaving}, and the reservation there was taken away",
        requeue_after_s=POLL_S,
        target=outcome.target_of(observation, pod),
    )
