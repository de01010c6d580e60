# SPDX-License-Identifier: Apache-2.0
"""For each reason a situation in which it is so, and the status that is written then.

What the operator finds out by itself is in the observation; what it is told is the API server's
error or the agent's word. No reason is put into a report by hand: `decide` has to come to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from devicemount_operator import act, errors
from devicemount_operator.agents import AgentError
from devicemount_operator.api.v1alpha1 import DeviceMount, LifetimeStatus
from devicemount_operator.decide import chain, report
from devicemount_operator.decide.decision import Report
from devicemount_operator.decide.observation import (
    Observation,
    PodPhase,
    Setback,
    TargetAbsent,
)
from devicemount_operator.reasons import Reason, is_note, trouble
from unit.operator import given
from unit.operator.given import NOW, RESOURCE

See = Callable[[DeviceMount], Observation]


@dataclass(frozen=True)
class Situation:
    """What is seen of a mount, and the error that the pass ends with, if it does."""

    see: See
    error: errors.DeviceMountError | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)  # of the mount, besides the usual

    def reported(self, mount: DeviceMount) -> tuple[Observation, Report]:
        """Return what is decided to be said of the mount."""
        observation = self.see(mount)
        if self.error is None:
            said = chain.decide(observation).report
        else:
            refusal = act.refusal_of(self.error, now=NOW)
            said = chain.refused(observation, refusal).report
        assert said is not None
        return observation, said

    def status(self, mount: DeviceMount) -> dict[str, Any]:
        """Return the status that is written of the mount."""
        written = report.render(*self.reported(mount)).status
        assert written is not None
        return dict(written)


def body(situation: Situation) -> dict[str, Any]:
    """Return the object that the situation is about, as somebody applies it."""
    spec = {"target": {"podName": "notebook-0"}, "resources": {"limits": {RESOURCE: 1}}}
    return {
        "apiVersion": "devicemount.io/v1alpha1",
        "kind": "DeviceMount",
        "metadata": {"name": "gpu", "namespace": "team-a"},
        "spec": {**spec, **situation.spec},
    }


def mount_of(situation: Situation) -> DeviceMount:
    """Return the same as it is read back."""
    document = body(situation)
    document["metadata"].update({"uid": given.MOUNT_UID, "generation": 1, "finalizers": []})
    return DeviceMount.model_validate({**document, "status": given.NOT_SEEN})


def _nothing_reserved(**changes: Any) -> See:
    return lambda mount: given.observation(mount=mount, **changes)


def _reserved(agent: Any = None, **shadow: Any) -> See:
    """See a shadow pod, and a target that is not read."""
    seen = {"target": None, "shadows": (given.shadow(**shadow),)}
    return lambda mount: given.observation(mount=mount, agent=agent or given.agent(), **seen)


def _unplaced(text: str, **changes: Any) -> See:
    shadow = given.shadow(scheduled=False, scheduler_text=text, seen=NOW - 9)
    return lambda mount: given.observation(mount=mount, shadows=(shadow,), **changes)


def _mounted(**changes: Any) -> See:
    return lambda mount: given.mounted(mount=mount, **changes)


def _expired(mount: DeviceMount) -> Observation:
    created = mount.metadata.creation_timestamp
    since = datetime.fromtimestamp(given.WALL, UTC) if created is None else created
    counted = LifetimeStatus(expire_after=mount.spec.lifetime.expire_after, since=since)
    status = mount.status.model_copy(update={"lifetime": mount.status.lifetime or counted})
    later = (since + timedelta(hours=9)).timestamp()
    return given.mounted(mount=mount.model_copy(update={"status": status}), steady=later)


def _concerned(reason: Reason) -> Situation:
    """The agent has granted and says besides that something is amiss, or as it is meant to be."""
    grant = given.grant(concerns=(given.concern(reason.value, "it is so"),))
    return Situation(_mounted(agent=given.agent(grants=(grant,), container="notebook")))


def _refused_by_agent(reason: Reason) -> Situation:
    """The agent refuses with this word, which is its error's name."""
    word = trouble(reason.value)
    assert word is not None
    return Situation(_reserved(), error=AgentError(word, "it is so"))


def _forbidden(by: errors.ForbiddenBy, message: str) -> Situation:
    return Situation(_nothing_reserved(), error=errors.Forbidden(message, status=403, by=by))


_TWO = (given.container(), given.container("proxy"))
_WORKING = given.agent(applying=frozenset({given.SHADOW_UID}), container="notebook")
_NOBODY = given.agent(nodes=frozenset())

# Told by the agent: its tests show where each comes from (test_reached).
TOLD_BY_AGENT: Final = frozenset(
    {
        Reason.CONTAINER_MISMATCH,
        Reason.ALLOCATION_UNKNOWN,
        Reason.STALE_REQUEST,
        Reason.STILL_RESERVED,
        Reason.PATH_CONFLICT,
        Reason.UNSUPPORTED_RUNTIME,
        Reason.FILTER_BLOCKED,
        Reason.LIBRARIES_MISSING,
        Reason.VERSION_MISMATCH,
        Reason.DEVICE_UNHEALTHY,
        Reason.NOT_PERMITTED,
        Reason.NOT_ISOLATED,
    }
)

FOUND: Final[Mapping[Reason, Situation]] = {
    Reason.MOUNTED: Situation(_mounted()),
    Reason.SUSPENDED: Situation(_mounted(), spec={"suspend": True}),
    Reason.EXPIRED: Situation(_expired, spec={"lifetime": {"expireAfter": "8h"}}),
    Reason.RESERVING: Situation(_reserved(_WORKING, scheduled=False, seen=NOW - 3)),
    Reason.GRAFTING: Situation(_reserved(_WORKING, seen=NOW - 3)),
    Reason.TARGET_NOT_FOUND: Situation(_nothing_reserved(target=TargetAbsent())),
    Reason.TARGET_NOT_RUNNING: Situation(_nothing_reserved(target=given.target(node=None))),
    Reason.TARGET_FINISHED: Situation(
        _nothing_reserved(target=given.target(phase=PodPhase.SUCCEEDED))
    ),
    Reason.INSUFFICIENT: Situation(_unplaced(f"0/2 nodes: 1 Insufficient {RESOURCE}.")),
    Reason.RESOURCE_UNKNOWN: Situation(
        _unplaced("0/2 nodes", node=replace(given.node(), allocatable={}))
    ),
    Reason.UNSCHEDULABLE: Situation(
        _reserved(scheduled=False, gates=("example.com/quota",), seen=NOW - 9)
    ),
    Reason.QUOTA_EXCEEDED: _forbidden(errors.ForbiddenBy.QUOTA, "exceeded quota: devices"),
    Reason.DRIVER_MISSING: Situation(
        _unplaced(
            "0/2 nodes",
            node=given.node(**{RESOURCE: 0}),
            facts=(given.facts(driver_missing="no driver is bound"),),
        )
    ),
    Reason.NODE_NOT_ENABLED: Situation(
        _nothing_reserved(agent=_NOBODY, node=given.node(enabled=False))
    ),
    Reason.AGENT_UNAVAILABLE: Situation(_nothing_reserved(agent=_NOBODY)),
    Reason.API_UNAVAILABLE: Situation(
        _nothing_reserved(), error=errors.Unreachable("connection refused")
    ),
    Reason.WEBHOOK_UNAVAILABLE: Situation(
        _nothing_reserved(),
        error=errors.WebhookUnavailable('failed calling webhook "w.example.com": no endpoints'),
    ),
    Reason.NODE_DRAINING: Situation(
        _nothing_reserved(
            node=given.node(leaving="is cordoned"),
            setback=Setback(
                reason=Reason.RESERVATION_LOST,
                message="it was evicted",
                count=1,
                at=NOW - 3,
                until=NOW - 1,
                generation=1,
            ),
        )
    ),
    Reason.NAMESPACE_TERMINATING: _forbidden(
        errors.ForbiddenBy.NAMESPACE, "namespace team-a is being terminated"
    ),
    Reason.SHADOW_NOT_RUNNING: Situation(_reserved(hold_down_since=NOW - 40)),
    Reason.DEVICE_BUSY: Situation(
        _mounted(),
        error=act.Refused(given.refusal(Reason.DEVICE_BUSY, holders=(given.holder(),))),
    ),
    Reason.RESERVATION_LOST: Situation(_reserved(deleting=True)),
    Reason.SHRINK_NOT_POSSIBLE: Situation(
        _mounted(shadows=(given.shadow(resources={RESOURCE: 2}),))
    ),
    Reason.CONTAINER_NOT_FOUND: Situation(
        _nothing_reserved(), spec={"target": {"podName": "notebook-0", "container": "absent"}}
    ),
    Reason.CONTAINER_AMBIGUOUS: Situation(_nothing_reserved(target=given.target(containers=_TWO))),
    Reason.NOT_ALLOWED: _forbidden(errors.ForbiddenBy.POLICY, "policy labels: team is required"),
    Reason.RESERVATION_NOT_ALLOWED: Situation(
        _nothing_reserved(), spec={"reservation": {"annotations": {"example.com/a": "b"}}}
    ),
    Reason.UNSUPPORTED_RESOURCE: Situation(
        _nothing_reserved(facts=(given.facts(refused="it cannot be given"),))
    ),
    Reason.ENV_FILE_NEEDED: Situation(
        _nothing_reserved(facts=(given.facts(env_only="only variables limit it"),))
    ),
    Reason.ALLOCATED_BY_DRA: Situation(_reserved(claim="claim-x")),
}


def of(reason: Reason) -> Situation:
    """Return the situation of a reason; KeyError: nobody has said yet when it is so."""
    if reason not in TOLD_BY_AGENT:
        return FOUND[reason]
    is_refusal = trouble(reason.value) is not None and not is_note(reason.value)
    return _refused_by_agent(reason) if is_refusal else _concerned(reason)
