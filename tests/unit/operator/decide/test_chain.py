# SPDX-License-Identifier: Apache-2.0
"""What is decided in each situation: actions, exact reason and message, and when to look again."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from devicemount_agent.holders.end import ASKED, FOREIGN, MAIN
from devicemount_agent.holders.search import HANDED_ON, MOUNTED, UNSTOPPED
from devicemount_operator.decide import chain, report
from devicemount_operator.decide.chain import decide, refused
from devicemount_operator.decide.decision import (
    Action,
    AddFinalizer,
    CreateShadowPod,
    Decision,
    DeleteShadowPod,
    DropFinalizer,
    Remove,
    RemovePolicy,
    StartApply,
)
from devicemount_operator.decide.needs import (
    needs_facts,
    needs_node,
    needs_priority,
    needs_target,
)
from devicemount_operator.decide.observation import (
    ContainerState,
    Grant,
    GrantPhase,
    NodeName,
    Observation,
    Place,
    PodPhase,
    PodUID,
    PriorityClass,
    Setback,
    TargetAbsent,
)
from devicemount_operator.reasons import TABLE, Reason
from unit.operator import given
from unit.operator.given import NODE, NOW, PLACE, SHADOW_NAME, SHADOW_UID

OTHER_UID = PodUID("44444444-0000-4000-8000-000000000000")
FORMER = Place(node=NODE, target_uid=PodUID("55555555-0000-4000-8000-000000000000"))

APPLY_NEW = StartApply(
    place=PLACE, container="notebook", container_id=given.CONTAINER_ID, shadow_uids=()
)
APPLY_AGAIN = replace(APPLY_NEW, shadow_uids=(SHADOW_UID,))
REMOVE_ALL = Remove(place=PLACE, policy=RemovePolicy.WAIT, shadow_uids=())
REMOVE_ONE = replace(REMOVE_ALL, shadow_uids=(SHADOW_UID,))
REMOVE_LOST = Remove(place=PLACE, policy=RemovePolicy.LOST, shadow_uids=(SHADOW_UID,))
REMOVE_FORGOTTEN = Remove(place=PLACE, policy=RemovePolicy.LOST, shadow_uids=())
DELETE = DeleteShadowPod(name=SHADOW_NAME, uid=SHADOW_UID)
TERMINATE = {"whenBusy": "Terminate", "gracePeriodSeconds": 5, "includeMainProcess": True}
SPARING = {"whenBusy": "Terminate"}
INCLUDE = "set spec.unmount.includeMainProcess to true"
TERMINATE_ALL = replace(REMOVE_ALL, policy=RemovePolicy.TERMINATE, grace_s=5, include_main=True)


@dataclass(frozen=True)
class Case:
    observation: Observation
    actions: tuple[Action, ...] = ()
    reason: Reason | None = None
    message: str | None = None
    again_s: float | None = None
    failures: int = 0


def case(name: str, observation: Observation, *actions: Action, **expected: Any) -> Any:
    return pytest.param(Case(observation, actions, **expected), id=name)


def reserve(ordinal: int = 0, count: int = 1) -> CreateShadowPod:
    return CreateShadowPod(ordinal, {given.RESOURCE: count})


def failed(reason: Reason = Reason.INSUFFICIENT, **changes: Any) -> Setback:
    fields = {"message": "too few", "count": 3, "generation": 1, "at": NOW - 1, "until": NOW + 4}
    return Setback(reason=reason, **{**fields, **changes})


def row(**changes: Any) -> dict[str, Any]:
    fields = {"podUID": PLACE.target_uid, "nodeName": NODE, "shadowPods": [SHADOW_NAME]}
    return {"observedGeneration": 1, "targets": [{**fields, **changes}]}


def unread(**changes: Any) -> Observation:
    return given.observation(**{"target": None, "shadows": (given.shadow(),), **changes})


APPLYING = given.agent(applying=frozenset({SHADOW_UID}), container="notebook")


WAY_UP = [
    case(
        "nothing is reserved: a shadow pod is made and the agent asked at once",
        given.observation(),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "the finalizer was not set at admission: it comes after what the kubelet waits for",
        given.observation(mount=given.mount(metadata={"finalizers": []})),
        reserve(),
        APPLY_NEW,
        AddFinalizer(),
        again_s=2.0,
    ),
    case(
        "the operator died between shadow pod and finalizer",
        unread(mount=given.mount(metadata={"finalizers": ["x"]}), agent=APPLYING),
        AddFinalizer(),
        again_s=1.9,
    ),
    case(
        "a stranger has the first name: the next ordinal",
        given.observation(shadows=(given.shadow(is_ours=False),)),
        reserve(1),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "a dying shadow pod, released, still has the name",
        given.observation(
            shadows=(given.shadow(deleting=True),),
            agent=given.agent(released=frozenset({SHADOW_UID})),
        ),
        reserve(1),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "strangers have all names",
        given.observation(
            shadows=tuple(
                given.shadow(name=f"dm-11111111-22222222-{n}", uid=PodUID(str(n)), is_ours=False)
                for n in range(64)
            )
        ),
        reason=Reason.NOT_ALLOWED,
        message="the names of 64 shadow pods are taken. Have the policy changed, or the pod's "
        "namespace; it is tried again now and then.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "the agent is at work and it has not taken long: nothing is said",
        unread(agent=APPLYING),
        again_s=1.9,
    ),
    case(
        "the agent is at work and it takes long",
        unread(shadows=(given.shadow(seen=NOW - 2),), agent=APPLYING),
        reason=Reason.GRAFTING,
        message=f"shadow pod {SHADOW_NAME} holds the devices. It goes on by itself.",
    ),
    case(
        "no scheduler has spoken yet and it takes long",
        unread(shadows=(given.shadow(seen=NOW - 2, scheduled=False),), agent=APPLYING),
        reason=Reason.RESERVING,
        message=f"shadow pod {SHADOW_NAME} waits for its node. It goes on by itself.",
        again_s=28.0,
    ),
    case(
        "a restarted operator asks the agent about the shadow pod that stands",
        given.observation(shadows=(given.shadow(),)),
        APPLY_AGAIN,
        again_s=1.9,
    ),
    case(
        "hold does not run yet: looked at again when it must",
        unread(
            shadows=(given.shadow(seen=NOW - 5, hold_down_since=NOW - 4.5),),
            agent=APPLYING,
            setback=failed(until=NOW - 1),
        ),
        again_s=20.5,
        failures=3,
    ),
    case(
        "the devices open",
        given.mounted(),
        reason=Reason.MOUNTED,
        message="testbed.devicemount.io/vcs vcs1 opens in container notebook.",
    ),
    case(
        "the devices open but hold does not run yet",
        given.mounted(shadows=(given.shadow(hold_down_since=NOW - 1),)),
        reason=Reason.MOUNTED,
        message="testbed.devicemount.io/vcs vcs1 opens in container notebook.",
        again_s=24.0,
    ),
    case(
        "success after failures clears them",
        given.mounted(setback=failed(until=NOW - 1)),
        reason=Reason.MOUNTED,
        message="testbed.devicemount.io/vcs vcs1 opens in container notebook.",
        failures=0,
    ),
    case(
        "a release was refused as busy and is not wanted any more: still mounted",
        given.mounted(
            agent=given.agent(grants=(given.grant(GrantPhase.BUSY),), container="notebook")
        ),
        reason=Reason.MOUNTED,
        message="testbed.devicemount.io/vcs vcs1 opens in container notebook.",
    ),
    case(
        "the container was restarted: grafted again, and Ready is no longer said",
        given.observation(
            mount=given.mount(
                status={"conditions": [{"type": "Ready", "status": "True", "reason": "Mounted"}]}
            ),
            shadows=(given.shadow(seen=NOW - 100),),
            agent=given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED),)),
        ),
        APPLY_AGAIN,
        reason=Reason.GRAFTING,
        message=f"its container has ended, and shadow pod {SHADOW_NAME} keeps the devices for the "
        "next. It goes on by itself.",
    ),
    case(
        "the container was restarted just now: its agent grafts by itself and is left alone",
        given.observation(
            mount=given.mount(
                status={"conditions": [{"type": "Ready", "status": "True", "reason": "Mounted"}]}
            ),
            shadows=(given.shadow(seen=NOW - 100),),
            agent=given.agent(
                grants=(given.grant(GrantPhase.TARGET_ENDED),), ended={SHADOW_UID: NOW - 1}
            ),
        ),
        reason=Reason.GRAFTING,
        again_s=2.0,
    ),
    case(
        "the last shadow pod never ran: the next one is made, and nothing granted for it yet",
        given.observation(setback=failed(Reason.SHADOW_NOT_RUNNING, until=NOW)),
        reserve(),
        again_s=2.0,
        failures=3,
    ),
    case(
        "it does not run either, yet",
        given.observation(
            shadows=(given.shadow(hold_down_since=NOW - 1),),
            setback=failed(Reason.SHADOW_NOT_RUNNING, until=NOW),
        ),
        again_s=1.9,
        failures=3,
    ),
    case(
        "it runs: granted",
        given.observation(
            shadows=(given.shadow(),), setback=failed(Reason.SHADOW_NOT_RUNNING, until=NOW)
        ),
        APPLY_AGAIN,
        again_s=1.9,
        failures=3,
    ),
    case(
        "mounted again after a loss: how often it was lost is remembered for the next time",
        given.mounted(setback=failed(Reason.RESERVATION_LOST, until=NOW - 60)),
        reason=Reason.MOUNTED,
        failures=3,
    ),
    case(
        "mounted again long after a loss: that is forgotten",
        given.mounted(setback=failed(Reason.RESERVATION_LOST, until=NOW - 601)),
        reason=Reason.MOUNTED,
    ),
    case(
        "long after a shadow pod did not run: nothing is waited for any more",
        given.observation(setback=failed(Reason.SHADOW_NOT_RUNNING, until=NOW - 601)),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
        failures=3,
    ),
    case(
        "mounted after it was refused: that is over",
        given.mounted(setback=failed(Reason.INSUFFICIENT, until=NOW - 60)),
        reason=Reason.MOUNTED,
    ),
    case(
        "access was taken and cannot be given again yet: its agent goes on, nothing is given back",
        given.observation(
            shadows=(given.shadow(seen=NOW - 100),),
            agent=given.agent(
                grants=(
                    given.grant(
                        GrantPhase.WAITING,
                        concerns=(given.concern("FilterBlocked", "program 7 is linked"),),
                    ),
                )
            ),
        ),
        reason=Reason.FILTER_BLOCKED,
        message="program 7 is linked. Allow the device there, or run the container without that "
        "filter.",
        again_s=15.0,
    ),
    case(
        "a privileged target: Ready says that it is not isolated",
        given.mounted(
            agent=given.agent(
                grants=(given.grant(concerns=(given.concern("NotIsolated", "It may open all."),)),),
                container="notebook",
            )
        ),
        reason=Reason.MOUNTED,
        message="testbed.devicemount.io/vcs vcs1 opens in container notebook. It may open all.",
    ),
]

TARGET = [
    case(
        "the target does not exist",
        given.observation(target=TargetAbsent()),
        reason=Reason.TARGET_NOT_FOUND,
        message="pod notebook-0 does not exist in namespace team-a. It mounts as soon as there "
        "is one and it runs; if spec.target is wrong, change it.",
        again_s=2.0,
    ),
    case(
        "the target is gone: what it had is given back",
        given.observation(
            target=TargetAbsent(),
            shadows=(given.shadow(),),
            agent=given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED),)),
        ),
        REMOVE_ALL,
        DELETE,
        reason=Reason.TARGET_NOT_FOUND,
        again_s=2.0,
    ),
    case(
        "another pod of that name: the former one's shadow pod is given back first",
        given.observation(
            shadows=(given.shadow(place=FORMER),),
            agent=given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED, place=FORMER),)),
        ),
        Remove(place=FORMER, policy=RemovePolicy.WAIT, shadow_uids=()),
        DELETE,
        reason=Reason.RESERVING,
        message="a former shadow pod is given back. It goes on by itself.",
        again_s=0.0,
    ),
    case(
        "the target has ended",
        given.observation(target=given.target(phase=PodPhase.SUCCEEDED), shadows=(given.shadow(),)),
        REMOVE_ALL,
        DELETE,
        reason=Reason.TARGET_FINISHED,
        message="pod notebook-0 has ended (Succeeded). It mounts again when a new pod takes "
        "its place; else delete this DeviceMount.",
        again_s=2.0,
    ),
    case(
        "the chosen container has ended for good while its pod lives on",
        given.observation(
            target=given.target(
                containers=(
                    given.container(state=ContainerState.FINISHED, detail="Completed"),
                    given.container("proxy"),
                )
            ),
            mount=given.mount(container="notebook"),
        ),
        reason=Reason.TARGET_FINISHED,
        message="container notebook of pod notebook-0 has ended (Completed). It mounts again when "
        "a new pod takes its place; else delete this DeviceMount.",
        again_s=2.0,
    ),
    case(
        "the target is being deleted and its container has ended",
        given.observation(
            target=given.target(deleting=True),
            shadows=(given.shadow(),),
            agent=given.agent(grants=(given.grant(GrantPhase.TARGET_ENDED),)),
        ),
        REMOVE_ALL,
        DELETE,
        reason=Reason.TARGET_FINISHED,
        again_s=2.0,
    ),
    case(
        "the target is being deleted: nothing is begun",
        given.observation(target=given.target(deleting=True)),
        reason=Reason.TARGET_NOT_RUNNING,
        message="pod notebook-0 is being deleted. It mounts as soon as the container runs.",
        again_s=2.0,
    ),
    case(
        "the target is not scheduled",
        given.observation(target=given.target(node=None, phase=PodPhase.PENDING)),
        reason=Reason.TARGET_NOT_RUNNING,
        message="pod notebook-0 is not scheduled yet. It mounts as soon as the container runs.",
        again_s=2.0,
    ),
    case(
        "the container crashes: what is reserved stays",
        given.observation(
            target=given.target(
                containers=(
                    given.container(state=ContainerState.WAITING, detail="CrashLoopBackOff: 10s"),
                )
            ),
            shadows=(given.shadow(),),
        ),
        reason=Reason.TARGET_NOT_RUNNING,
        message="container notebook of pod notebook-0 does not run (CrashLoopBackOff: 10s). "
        "It mounts as soon as the container runs.",
        again_s=2.0,
    ),
    case(
        "several containers and none is named",
        given.observation(
            target=given.target(containers=(given.container("a"), given.container("b")))
        ),
        reason=Reason.CONTAINER_AMBIGUOUS,
        message="pod notebook-0 has several containers and none is named; it has: a, b. Name one "
        "of them in spec.target.container, or set the pod's annotation "
        "kubectl.kubernetes.io/default-container.",
        again_s=15.0,
    ),
    case(
        "the named container does not exist",
        given.observation(mount=given.mount(container="x")),
        reason=Reason.CONTAINER_NOT_FOUND,
        message="pod notebook-0 has no container x; it has: notebook. Name one of them in "
        "spec.target.container.",
        again_s=15.0,
    ),
    case(
        "the annotation names a container that does not exist",
        given.observation(
            target=given.target(
                containers=(given.container("a"), given.container("b")), default_container="c"
            )
        ),
        reason=Reason.CONTAINER_NOT_FOUND,
        message="pod notebook-0 has no container c, its default; it has: a, b. Name one of them "
        "in spec.target.container.",
        again_s=15.0,
    ),
    case(
        "the pod names its default container",
        given.observation(
            target=given.target(
                containers=(given.container("proxy"), given.container()),
                default_container="notebook",
            )
        ),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "the mount's own choice goes before the pod's default",
        given.observation(
            mount=given.mount(container="notebook"),
            target=given.target(
                containers=(given.container("proxy"), given.container()), default_container="proxy"
            ),
        ),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "no agent on the node: nothing is reserved",
        given.observation(agent=given.agent(nodes=frozenset({NodeName("node2")}))),
        reason=Reason.AGENT_UNAVAILABLE,
        message="no node agent is ready on node node1. It goes on when the agent answers: see the "
        "pods of DaemonSet devicemount-agent.",
        again_s=2.0,
    ),
]


def unplaced(text: str, **changes: Any) -> Observation:
    node = changes.pop("node", given.node())
    limits = changes.pop("limits", {given.RESOURCE: 1})
    fields = {"scheduled": False, "scheduler_text": text, "resources": limits}
    shadow = given.shadow(**{**fields, **changes.pop("shadow", {})})
    asked = {"mount": given.mount(limits=limits), "shadows": (shadow,), "agent": APPLYING}
    return unread(**{**asked, "node": node, **changes})


TOO_FEW = "0/2 nodes are available: 1 Insufficient testbed.devicemount.io/vcs, 1 node(s) didn't"

RESERVATION = [
    case(
        "too few devices are free",
        unplaced(TOO_FEW),
        reason=Reason.INSUFFICIENT,
        message=f"node node1 has too few free: 1 testbed.devicemount.io/vcs asked for ({TOO_FEW}). "
        "It mounts as soon as the node has enough free ones.",
        again_s=10.0,
    ),
    case(
        "more is asked for than the node has at all",
        unplaced(TOO_FEW, limits={given.RESOURCE: 5}),
        reason=Reason.INSUFFICIENT,
        message="node node1 has 4 testbed.devicemount.io/vcs in all: 5 asked for. "
        "It mounts as soon as the node has enough free ones.",
        again_s=10.0,
    ),
    case(
        "the node does not know the resource",
        unplaced(TOO_FEW, limits={"a.io/b": 1}),
        reason=Reason.RESOURCE_UNKNOWN,
        message="node node1 does not offer a.io/b. It mounts when a device plugin on that node "
        "registers it; if the name is wrong, change spec.resources.",
        again_s=10.0,
    ),
    case(
        "the node could not be read: the scheduler's own word is enough",
        unplaced(TOO_FEW, node=None),
        reason=Reason.INSUFFICIENT,
        again_s=10.0,
    ),
    case(
        "the scheduler refuses for another reason",
        unplaced("0/1 nodes are available: 1 Insufficient cpu."),
        reason=Reason.UNSCHEDULABLE,
        message="the scheduler says: 0/1 nodes are available: 1 Insufficient cpu. It mounts as "
        "soon as the pod can be placed.",
        again_s=10.0,
    ),
    case(
        "a gate holds the shadow pod",
        unplaced("Scheduling is blocked", shadow={"gates": ("q/x", "q/y")}),
        reason=Reason.UNSCHEDULABLE,
        message=f"shadow pod {SHADOW_NAME} is held by scheduling gate q/x, q/y. It mounts as soon "
        "as the pod can be placed.",
        again_s=10.0,
    ),
    case(
        "no scheduler looks at the shadow pod",
        unplaced("", shadow={"scheduler": "ghost", "seen": NOW - 30}),
        reason=Reason.UNSCHEDULABLE,
        message=f"no scheduler ghost has looked at shadow pod {SHADOW_NAME}. It mounts as soon as "
        "the pod can be placed.",
        again_s=10.0,
    ),
    case(
        "the kubelet refuses the shadow pod",
        given.observation(
            shadows=(
                given.shadow(
                    phase=PodPhase.FAILED,
                    failure="UnexpectedAdmissionError",
                    failure_text="Allocate failed",
                ),
            )
        ),
        REMOVE_LOST,
        DELETE,
        reason=Reason.INSUFFICIENT,
        message=f"shadow pod {SHADOW_NAME} has ended (UnexpectedAdmissionError: Allocate failed). "
        "It mounts as soon as the node has enough free ones.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "a setback is not over: nothing is reserved, the same is said",
        given.observation(target=None, setback=failed()),
        reason=Reason.INSUFFICIENT,
        message="too few",
        again_s=4.0,
        failures=3,
    ),
    case(
        "a setback is over: reserved anew, and its failures still count",
        given.observation(setback=failed(until=NOW)),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
        failures=3,
    ),
    case(
        "others delete the shadow pod: revoked at once, whoever holds the device",
        given.mounted(shadows=(given.shadow(deleting=True),)),
        REMOVE_LOST,
        reason=Reason.RESERVATION_LOST,
        message=f"shadow pod {SHADOW_NAME} was deleted or evicted. A new reservation is made.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "the shadow pod went by force",
        given.mounted(shadows=()),
        REMOVE_LOST,
        reason=Reason.RESERVATION_LOST,
        message="the shadow pod is gone. A new reservation is made.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "the shadow pod is evicted after the grant",
        given.mounted(
            shadows=(
                given.shadow(
                    phase=PodPhase.FAILED, failure="Evicted", failure_text="disk pressure"
                ),
            )
        ),
        REMOVE_LOST,
        DELETE,
        reason=Reason.RESERVATION_LOST,
        message=f"shadow pod {SHADOW_NAME} has ended (Evicted: disk pressure). A new reservation "
        "is made.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "the agent has seen the device go to another",
        given.observation(
            shadows=(given.shadow(),),
            agent=given.agent(grants=(given.grant(GrantPhase.LOST),)),
        ),
        REMOVE_LOST,
        DELETE,
        reason=Reason.RESERVATION_LOST,
        message=f"the device of shadow pod {SHADOW_NAME} is another's now. A new reservation is "
        "made.",
        again_s=2.0,
        failures=1,
    ),
    *(
        case(
            f"the agent has noticed the loss itself and says why: {word}",
            given.observation(
                shadows=(given.shadow(),),
                agent=given.agent(
                    grants=(given.grant(GrantPhase.LOST, lost=given.concern(word, "as it saw it")),)
                ),
            ),
            REMOVE_LOST,
            DELETE,
            reason=reason,
            message=f"as it saw it. {TABLE[reason].advice}",
            again_s=2.0,
            failures=1,
        )
        for word, reason in (
            ("ReservationLost", Reason.RESERVATION_LOST),
            ("ShadowNotRunning", Reason.SHADOW_NOT_RUNNING),
            ("AWordOfANewerAgent", Reason.RESERVATION_LOST),
        )
    ),
    case(
        "an old shadow pod is lost while a new one is mounted: only the old one is revoked",
        given.mounted(shadows=(given.shadow(), given.shadow(uid=OTHER_UID, deleting=True))),
        Remove(place=PLACE, policy=RemovePolicy.LOST, shadow_uids=(OTHER_UID,)),
        again_s=0.0,
    ),
    case(
        "the shadow pod went by force while the operator was down",
        given.observation(mount=given.mount(status=row())),
        REMOVE_FORGOTTEN,
        reason=Reason.RESERVATION_LOST,
        message="the shadow pod that status names is gone. A new reservation is made.",
        again_s=0.0,
    ),
    case(
        "a shadow pod that is given back still stands",
        given.observation(
            shadows=(given.shadow(),), agent=given.agent(released=frozenset({SHADOW_UID}))
        ),
        DELETE,
        reason=Reason.RESERVING,
        again_s=0.0,
    ),
    case(
        "the process of the shadow pod does not run for 25 s: revoked, though mounted",
        given.mounted(
            shadows=(given.shadow(hold_down_since=NOW - 25, hold_text="ErrImagePull: no"),)
        ),
        REMOVE_LOST,
        DELETE,
        reason=Reason.SHADOW_NOT_RUNNING,
        message=f"shadow pod {SHADOW_NAME} has not run for 25 s: ErrImagePull: no. It is tried "
        "again: see the shadow pod's events.",
        again_s=2.0,
        failures=1,
    ),
]


LACKS = "PCI 1f36:7030 has no driver"
WAITED_FOR = given.turn(is_awaited=True)
NONE_OFFERED = given.node(**{given.RESOURCE: 0})
COMMAND = "kubectl label node node1 devicemount.io/enabled=true --overwrite"

PLACING = [
    case(
        "the node offers none and its device plugin says why",
        unplaced(TOO_FEW, node=NONE_OFFERED, facts=(given.facts(driver_missing=LACKS),)),
        reason=Reason.DRIVER_MISSING,
        message=f"node node1 offers no testbed.devicemount.io/vcs: {LACKS}. It mounts when the "
        "device plugin offers the devices: install what is absent.",
        again_s=10.0,
    ),
    case(
        "the node does not even know the resource, and its device plugin says why",
        unplaced(
            TOO_FEW,
            limits={"a.io/b": 1},
            facts=(given.facts("a.io/b", driver_missing=LACKS),),
        ),
        reason=Reason.DRIVER_MISSING,
        again_s=10.0,
    ),
    case(
        "the device plugin misses something for one card while it offers others",
        unplaced(TOO_FEW, facts=(given.facts(driver_missing=LACKS),)),
        reason=Reason.INSUFFICIENT,
        again_s=10.0,
    ),
    case(
        "others wait for the turn of a pod that is not placed: not yet given up",
        unplaced(TOO_FEW, turn=WAITED_FOR, shadow={"seen": NOW - 2}),
        reason=Reason.INSUFFICIENT,
        again_s=3.0,
    ),
    case(
        "others wait for the turn of a pod that is not placed: given up",
        unplaced(TOO_FEW, turn=WAITED_FOR, shadow={"seen": NOW - 5}),
        REMOVE_LOST,
        DELETE,
        reason=Reason.INSUFFICIENT,
        again_s=2.0,
        failures=1,
    ),
    case(
        "the same while its target does not run",
        unplaced(
            TOO_FEW,
            turn=WAITED_FOR,
            shadow={"seen": NOW - 5},
            target=given.target(containers=(given.container(state=ContainerState.WAITING),)),
        ),
        REMOVE_LOST,
        DELETE,
        reason=Reason.INSUFFICIENT,
        again_s=2.0,
        failures=1,
    ),
    case(
        "others wait, and the scheduler has said nothing against it yet",
        unplaced("", turn=WAITED_FOR, shadow={"seen": NOW - 9}),
        reason=Reason.RESERVING,
        again_s=21.0,
    ),
    case(
        "others wait, and its agent has granted what the watch has not shown as placed",
        given.mounted(shadows=(given.shadow(scheduled=False, seen=NOW - 60),), turn=WAITED_FOR),
        reason=Reason.MOUNTED,
    ),
    case(
        "nobody waits for it: it stands and is placed as soon as it can be",
        unplaced(TOO_FEW, turn=given.turn(), shadow={"seen": NOW - 60}),
        reason=Reason.INSUFFICIENT,
        again_s=10.0,
    ),
    case(
        "a claim of dynamic resource allocation serves it: given back",
        unread(shadows=(given.shadow(claim="gpu-x"),), agent=APPLYING),
        REMOVE_ONE,
        DELETE,
        reason=Reason.ALLOCATED_BY_DRA,
        message=f"ResourceClaim gpu-x serves the devices of shadow pod {SHADOW_NAME}. Ask for a "
        "resource that a device plugin serves.",
        again_s=10.0,
        failures=1,
    ),
    case(
        "no agent, since the node lacks the label: the command that helps",
        given.observation(agent=given.agent(nodes=frozenset()), node=given.node(enabled=False)),
        reason=Reason.NODE_NOT_ENABLED,
        message=f"no node agent runs on node node1, which is not enabled for it: {COMMAND}. It "
        "goes on when the node has that label and its agent runs.",
        again_s=5.0,
    ),
    case(
        "no agent although the node has the label",
        given.observation(agent=given.agent(nodes=frozenset()), node=given.node()),
        reason=Reason.AGENT_UNAVAILABLE,
        again_s=2.0,
    ),
    case(
        "the label was taken away under a mount: not ready, nothing revoked",
        given.observation(
            shadows=(given.shadow(),),
            agent=given.agent(
                nodes=frozenset(), grants=(given.grant(GrantPhase.WAITING),), container="notebook"
            ),
            node=given.node(enabled=False),
        ),
        reason=Reason.NODE_NOT_ENABLED,
        again_s=5.0,
    ),
]


def reserving(*facts: Any, annotations: Any = None, **changes: Any) -> Observation:
    """A mount that is about to reserve, with a reservation of its own."""
    reservation = {"annotations": annotations or {}, **changes.pop("reservation", {})}
    mount = given.mount(reservation=reservation)
    return given.observation(**{"mount": mount, "facts": facts, **changes})


QUEUE = "scheduling.volcano.sh/queue-name"
URGENT = PriorityClass(name="urgent", value=1000)

TERMS = [
    case(
        "the profile refuses the resource: nothing is reserved",
        reserving(given.facts(refused="MPS is not supported")),
        reason=Reason.UNSUPPORTED_RESOURCE,
        message="testbed.devicemount.io/vcs: MPS is not supported. Ask for another resource in "
        "spec.resources.",
        again_s=10.0,
        failures=1,
    ),
    case(
        "only the environment limits the device: nothing is reserved",
        reserving(given.facts(env_only="memory and cores of the slice")),
        reason=Reason.ENV_FILE_NEEDED,
        message="testbed.devicemount.io/vcs: memory and cores of the slice. To have them in a file "
        "that your programs read, set spec.reservation.acceptEnvFile: delete this DeviceMount and "
        "create another one.",
        again_s=10.0,
        failures=1,
    ),
    case(
        "only the environment limits the device, and that is accepted",
        reserving(given.facts(env_only="memory"), reservation={"acceptEnvFile": True}),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "an annotation that is allowed",
        reserving(annotations={QUEUE: "q"}),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "an annotation that is not allowed: it and those that are, are named",
        reserving(annotations={QUEUE: "q", "volcano.sh/devices-to-allocate": "all"}),
        reason=Reason.RESERVATION_NOT_ALLOWED,
        message="annotations of spec.reservation that are not allowed: "
        f"volcano.sh/devices-to-allocate; allowed: {QUEUE}. Leave it out: delete this DeviceMount "
        "and create another one; which annotations are allowed is a setting of the operator.",
        again_s=10.0,
        failures=1,
    ),
    case(
        "a priority class above the target's",
        reserving(priority_class=URGENT, target=given.target(priority=999)),
        reason=Reason.RESERVATION_NOT_ALLOWED,
        message="PriorityClass urgent (1000) is above the priority of pod notebook-0 (999). Leave "
        "it out: delete this DeviceMount and create another one; which annotations are allowed is "
        "a setting of the operator.",
        again_s=10.0,
        failures=1,
    ),
    case(
        "a priority class above a target in a cluster without priorities",
        reserving(priority_class=URGENT, target=given.target(priority=None)),
        reason=Reason.RESERVATION_NOT_ALLOWED,
        again_s=10.0,
        failures=1,
    ),
    case(
        "a priority class that does not exist",
        reserving(priority_class=PriorityClass(name="urgent", value=None)),
        reason=Reason.RESERVATION_NOT_ALLOWED,
        again_s=10.0,
        failures=1,
    ),
    case(
        "a priority class as high as the target's",
        reserving(priority_class=URGENT, target=given.target(priority=1000)),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "it is the turn of this mount",
        reserving(given.facts(serialised=True), turn=given.turn()),
        reserve(),
        APPLY_NEW,
        again_s=2.0,
    ),
    case(
        "another shadow pod is on its way",
        reserving(given.facts(serialised=True), turn=given.turn("shadow pod dm-1-2-0")),
        reason=Reason.RESERVING,
        message="testbed.devicemount.io/vcs is given to one pod of node node1 at a time, and "
        "shadow pod dm-1-2-0 is first. It goes on by itself.",
        again_s=5.0,
    ),
    case(
        "another has been on its way for a moment: nothing is said yet",
        reserving(given.facts(serialised=True), turn=given.turn("shadow pod x", since=NOW - 0.5)),
        again_s=1.5,
    ),
    case(
        "an earlier refusal is not over: nothing is asked for",
        reserving(given.facts(refused="MPS"), setback=failed(Reason.UNSUPPORTED_RESOURCE)),
        reason=Reason.UNSUPPORTED_RESOURCE,
        message="too few",
        again_s=4.0,
        failures=3,
    ),
]


def answered(reason: Reason, **changes: Any) -> Observation:
    seen_by = given.agent(refusal=given.refusal(reason), container="notebook")
    return given.observation(**{"shadows": (given.shadow(),), "agent": seen_by, **changes})


AGENT = [
    case(
        "the agent says that the container does not run: kept, asked again soon",
        answered(Reason.TARGET_NOT_RUNNING),
        reason=Reason.TARGET_NOT_RUNNING,
        message="said the agent. It mounts as soon as the container runs.",
        again_s=0.5,
        failures=1,
    ),
    case(
        "the refusal was counted and its pause is not over",
        answered(Reason.TARGET_NOT_RUNNING, target=None, setback=failed(at=NOW)),
        reason=Reason.INSUFFICIENT,
        message="too few",
        again_s=4.0,
        failures=3,
    ),
    case(
        "the refusal was counted and its pause is over",
        answered(Reason.TARGET_NOT_RUNNING, setback=failed(at=NOW, until=NOW)),
        APPLY_AGAIN,
        again_s=1.9,
        failures=3,
    ),
    case(
        "failures of another kind before it count as well",
        answered(Reason.AGENT_UNAVAILABLE, setback=failed(at=NOW - 9, until=NOW - 5)),
        reason=Reason.AGENT_UNAVAILABLE,
        message="said the agent. It goes on when the agent answers: see the pods of DaemonSet "
        "devicemount-agent.",
        again_s=4.0,
        failures=4,
    ),
    case(
        "failures of long ago do not count",
        answered(Reason.TARGET_NOT_RUNNING, setback=failed(at=NOW - 900, until=NOW - 800)),
        reason=Reason.TARGET_NOT_RUNNING,
        again_s=0.5,
        failures=1,
    ),
    case(
        "the kubelet gave the pod too few: only another pod can get more",
        answered(Reason.INSUFFICIENT),
        REMOVE_LOST,
        DELETE,
        reason=Reason.INSUFFICIENT,
        message="said the agent. It mounts as soon as the node has enough free ones.",
        again_s=2.0,
        failures=1,
    ),
    case(
        "nobody understands the allocation yet: it stays reserved and is asked about again",
        answered(Reason.ALLOCATION_UNKNOWN),
        reason=Reason.ALLOCATION_UNKNOWN,
        message="said the agent. The devices stay reserved; it mounts when the CDI spec or the "
        "profile that explains them arrives.",
        again_s=1.0,
        failures=1,
    ),
    case(
        "the slice belongs to another pod: only another pod can get another one",
        answered(Reason.RESERVATION_LOST),
        REMOVE_LOST,
        DELETE,
        reason=Reason.RESERVATION_LOST,
        again_s=2.0,
        failures=1,
    ),
    case(
        "something stands in the device's place: nothing is kept for a mount that cannot be",
        answered(Reason.PATH_CONFLICT),
        REMOVE_ONE,
        DELETE,
        reason=Reason.PATH_CONFLICT,
        message="said the agent. Remove it from the container, or use another device; it is "
        "tried again now and then.",
        again_s=10.0,
        failures=1,
    ),
]

GIVING_BACK = [
    case(
        "deleted before anything was reserved",
        given.observation(mount=given.deleted(), target=None),
        DropFinalizer(),
    ),
    case(
        "deleted: revoke, shadow pod, finalizer",
        given.mounted(mount=given.deleted()),
        REMOVE_ALL,
        DELETE,
        DropFinalizer(),
    ),
    case(
        "deleted while the agent waits for the kubelet",
        unread(mount=given.deleted(), agent=APPLYING),
        REMOVE_ALL,
        DELETE,
        DropFinalizer(),
    ),
    case(
        "deleted while somebody else's finalizer keeps it: given back, nothing dropped",
        given.mounted(mount=given.deleted(metadata={"finalizers": ["x"]})),
        REMOVE_ALL,
        DELETE,
    ),
    case(
        "deleted while others delete the shadow pod: lost first, and its own end is left alone",
        given.mounted(mount=given.deleted(), shadows=(given.shadow(deleting=True),)),
        REMOVE_LOST,
        DropFinalizer(),
    ),
    case(
        "deleted after the shadow pod went by force",
        given.mounted(mount=given.deleted(), shadows=()),
        REMOVE_LOST,
        DropFinalizer(),
    ),
    case(
        "deleted, and only status remembers where it was mounted",
        given.observation(mount=given.deleted(status=row()), target=None),
        REMOVE_FORGOTTEN,
        DropFinalizer(),
    ),
    case(
        "deleted, and status says that nothing was reserved",
        given.observation(mount=given.deleted(status=row(shadowPods=[])), target=None),
        DropFinalizer(),
    ),
    case(
        "deleted with shadow pods of a former target: each place is asked",
        given.mounted(
            mount=given.deleted(),
            shadows=(given.shadow(), given.shadow(uid=OTHER_UID, name="old", place=FORMER)),
        ),
        REMOVE_ALL,
        replace(REMOVE_ALL, place=FORMER),
        DELETE,
        DeleteShadowPod(name="old", uid=OTHER_UID),
        DropFinalizer(),
    ),
    case(
        "deleted beside a pod that lost a mark of ours and reserves what is granted: no loss",
        given.observation(
            mount=given.deleted(),
            shadows=(given.shadow(is_ours=False),),
            agent=given.agent(grants=(given.grant(),)),
        ),
        REMOVE_ALL,
        DropFinalizer(),
    ),
    case(
        "deleted beside a pod that is not ours: it is left alone",
        given.observation(mount=given.deleted(), shadows=(given.shadow(is_ours=False),)),
        DropFinalizer(),
    ),
    case(
        "deleted again after the release was proved",
        given.observation(
            mount=given.deleted(),
            shadows=(given.shadow(),),
            agent=given.agent(released=frozenset({SHADOW_UID})),
        ),
        DELETE,
        DropFinalizer(),
    ),
    case(
        "suspended: given back, the finalizer stays",
        given.mounted(mount=given.mount(suspend=True)),
        REMOVE_ALL,
        DELETE,
        reason=Reason.SUSPENDED,
        message="spec.suspend is true, the devices are given back. Set spec.suspend to false to "
        "mount again.",
    ),
    case(
        "deleted, and what is busy is to be ended",
        given.mounted(mount=given.deleted(unmount=TERMINATE)),
        TERMINATE_ALL,
        DELETE,
        DropFinalizer(),
    ),
    case(
        "suspended, and what is busy is to be ended after the usual grace",
        given.mounted(mount=given.mount(suspend=True, unmount={"whenBusy": "Terminate"})),
        replace(TERMINATE_ALL, grace_s=30, include_main=False),
        DELETE,
        reason=Reason.SUSPENDED,
    ),
    case(
        "deleted after the reservation was lost: what was to be ended is ended at once",
        given.mounted(
            mount=given.deleted(unmount=TERMINATE), shadows=(given.shadow(deleting=True),)
        ),
        REMOVE_LOST,
        DropFinalizer(),
    ),
    case(
        "suspended and deleted: deleted",
        given.mounted(mount=given.deleted(suspend=True)),
        REMOVE_ALL,
        DELETE,
        DropFinalizer(),
    ),
]


EVERY = [*GIVING_BACK, *TARGET, *RESERVATION, *PLACING, *TERMS, *WAY_UP, *AGENT]


@pytest.mark.parametrize("case", EVERY)
def test_decision(case: Case) -> None:
    decision = decide(case.observation)
    assert decision.actions == case.actions
    assert (decision.report.reason if decision.report else None) is case.reason
    if case.message is not None:
        assert decision.report is not None
        assert decision.report.message == case.message
    assert decision.requeue_after_s == pytest.approx(case.again_s)
    assert (decision.setback.count if decision.setback else 0) == case.failures


# What is told when an action is refused


def test_busy_names_the_processes_and_what_to_do() -> None:
    holders = (given.holder(), given.holder(18), given.holder(19, blocking=False))
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=holders, holders_total=3)
    decision = refused(given.mounted(mount=given.deleted()), busy)
    assert decision.actions == ()
    assert decision.report is not None
    assert decision.report.message == (
        "2 processes have a device open: 17 python train.py (container notebook), 18 python "
        "train.py (container notebook). To have them ended, set spec.unmount.whenBusy to "
        "Terminate. It is given back when none of them has it any more."
    )
    assert decision.report.target is not None
    assert decision.report.target.holders == holders
    assert decision.report.target.devices == (given.device(),)


def test_busy_says_how_many_hold_it_where_not_all_are_named() -> None:
    holders = tuple(given.holder(pid, command="w") for pid in range(32))
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=holders, holders_total=100)
    decision = refused(given.mounted(mount=given.deleted()), busy)
    assert decision.report is not None
    assert decision.report.message.startswith(
        "100 processes have a device open: 0 w (container notebook), 1 w (container notebook), 2 w "
        "(container notebook), 3 w (container notebook) and 96 more."
    )


@pytest.mark.parametrize(
    ("holder", "named"),
    [
        (given.holder(7, note="TERM was sent"), "7 python train.py (container notebook; TERM was"),
        (given.holder(7, container_id="feed"), "7 python train.py (container feed)"),
        (
            given.holder(
                7,
                pod_uid="dead",
                container_id="feed",
                container="feeder",
                pod_name="data-0",
                pod_namespace="team-a",
            ),
            "7 python train.py (pod data-0; container feeder)",
        ),
        (
            given.holder(
                7,
                pod_uid="dead",
                container_id="feed",
                container="secret",
                pod_name="secret-0",
                pod_namespace="another",
            ),
            "7 python train.py (pod dead; container feed)",
        ),
        (given.holder(7, pod_uid="dead"), "7 python train.py (pod dead; container notebook)"),
        (given.holder(7, pod_uid="", container_id=""), "7 python train.py (a process of the node)"),
        (given.holder(7, command="sh\n" + "x" * 200, container_id=""), "7 sh\\nxxx"),
    ],
    ids=[
        "a note",
        "another container",
        "names of its own namespace",
        "no names of another namespace",
        "another pod",
        "the node",
        "a command of its own choice",
    ],
)
def test_a_holder_is_named_with_where_it_is_and_what_is_special(holder: Any, named: str) -> None:
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=(holder,), holders_total=1)
    decision = refused(given.mounted(mount=given.deleted()), busy)
    assert decision.report is not None
    assert decision.report.message.startswith(f"1 process has a device open: {named}")
    assert len(decision.report.message) < 500


@pytest.mark.parametrize(
    ("unmount", "note", "advice"),
    [
        (SPARING, MAIN, f"To have the main process ended too, {INCLUDE}."),
        (
            SPARING,
            f"{MAIN}; {MOUNTED}",
            f"Umount the device's file system or, to have the main process ended too, {INCLUDE}.",
        ),
        (SPARING, f"{FOREIGN}; {MOUNTED}", "Umount the device's file system."),
        (SPARING, ASKED, ""),
        (
            {},
            MOUNTED,
            "Umount the device's file system or, to have them ended, set spec.unmount.whenBusy to "
            "Terminate.",
        ),
    ],
    ids=["main", "main, mounted", "another pod's, mounted", "being ended", "Wait, mounted"],
)
def test_what_has_to_be_done_is_said_of_who_is_not_ended(
    unmount: dict[str, Any], note: str, advice: str
) -> None:
    busy = given.refusal(
        Reason.DEVICE_BUSY,
        "",
        holders=(given.holder(note=note),),
        holders_total=1,
        is_revoked=unmount == SPARING,
    )
    said = refused(given.mounted(mount=given.deleted(unmount=unmount)), busy).report
    assert said is not None
    _, told = said.message.split(f"{note}). ")
    assert told == f"{advice} It is given back when none of them has it any more.".lstrip()


@pytest.mark.parametrize("note", [UNSTOPPED, HANDED_ON])
def test_of_who_only_may_have_a_device_no_more_is_said_and_no_ending_is_advised(note: str) -> None:
    holder = given.holder(note=note)
    busy = given.refusal(Reason.DEVICE_BUSY, "", holders=(holder,), holders_total=1)
    said = refused(given.mounted(mount=given.deleted()), busy).report
    assert said is not None
    assert said.message.startswith("1 process has or may have a device open: 17 python train.py (")
    assert "whenBusy" not in said.message

    both = replace(busy, holders=(holder, given.holder(18)), holders_total=2)
    said = refused(given.mounted(mount=given.deleted()), both).report
    assert said is not None
    assert said.message.startswith("2 processes have or may have a device open: 17 ")
    assert "set spec.unmount.whenBusy to Terminate" in said.message


@pytest.mark.parametrize(
    ("notes", "pause_s"),
    [
        ((ASKED,), 2.0),
        (("KILL sent",), 2.0),
        (("",), 2.0),
        ((HANDED_ON,), 2.0),
        ((UNSTOPPED, ASKED), 2.0),
        ((UNSTOPPED,), 5.0),
        ((MAIN,), 5.0),
        ((FOREIGN, f"{MAIN}; {MOUNTED}"), 5.0),
    ],
)
def test_the_next_attempt_comes_soon_only_while_somebody_is_being_ended(
    notes: tuple[str, ...], pause_s: float
) -> None:
    told = tuple(given.holder(17 + n, note=note) for n, note in enumerate(notes))
    busy = given.refusal(
        Reason.DEVICE_BUSY, "", holders=told, holders_total=len(told), is_revoked=True
    )
    observation = given.mounted(mount=given.deleted(), setback=failed(Reason.DEVICE_BUSY, count=9))
    assert refused(observation, busy).requeue_after_s == pause_s


def test_while_processes_are_being_ended_status_says_so_and_that_nothing_is_grafted() -> None:
    grant = given.grant(GrantPhase.BUSY, granted_wall=None)
    agent = given.agent(grants=(grant,), container="notebook")
    observation = given.mounted(mount=given.deleted(unmount=TERMINATE), agent=agent)
    busy = given.refusal(
        Reason.DEVICE_BUSY, "", holders=(given.holder(),), holders_total=1, is_revoked=True
    )
    said = refused(observation, busy).report
    assert said is not None
    assert said.message == (
        "access is revoked, and 1 process has a device open: 17 python train.py (container "
        "notebook). It is given back when none of them has it any more."
    )
    status = report.render(observation, said).status
    assert status is not None
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert (conditions["Reserved"], conditions["Grafted"]) == ("True", "False")
    assert [d["id"] for d in status["targets"][0]["devices"]] == ["vcs1"]  # kept for its Event
    assert "since" not in status["targets"][0]


@pytest.mark.parametrize(
    "grant",
    [
        given.grant(
            GrantPhase.WAITING, granted_wall=None, concerns=(given.concern("FilterBlocked"),)
        ),
        given.grant(GrantPhase.WAITING),
        given.grant(GrantPhase.TARGET_ENDED, granted_wall=None),
    ],
    ids=["access was taken", "its agent is silent", "its container has ended"],
)
def test_what_is_reserved_and_does_not_open_is_said_to_be_just_that(grant: Grant) -> None:
    ready = given.mount(status={"conditions": [{"type": "Ready", "status": "True", "reason": "x"}]})
    agent = given.agent(grants=(grant,), container="notebook")
    observation = given.mounted(mount=ready, target=given.target(), agent=agent)
    said = decide(observation).report
    assert said is not None
    status = report.render(observation, said).status
    assert status is not None
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    found = [conditions[kind] for kind in ("Ready", "Reserved", "Grafted")]
    assert (found, status["ready"]) == (["False", "True", "False"], "0/1")
    assert status["targets"][0]["devices"] == []


def test_what_is_wanted_again_while_its_processes_are_ended_is_asked_for_again() -> None:
    grant = given.grant(GrantPhase.BUSY, granted_wall=None)
    observation = given.mounted(
        target=given.target(), agent=given.agent(grants=(grant,), container="notebook")
    )
    assert decide(observation).actions == (APPLY_AGAIN,)


def busy_again(earlier: Decision, *, now: float) -> Decision:
    observation = given.mounted(mount=given.deleted(), setback=earlier.setback, now=now)
    return refused(observation, given.refusal(Reason.DEVICE_BUSY, "", at=now))


def test_a_busy_device_is_asked_for_ever_more_rarely_but_within_five_seconds() -> None:
    decision, now, pauses = Decision(), NOW, []
    for _ in range(6):
        decision = busy_again(decision, now=now)
        assert decision.requeue_after_s is not None
        pauses.append(decision.requeue_after_s)
        now += decision.requeue_after_s
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_processes_that_are_being_ended_are_looked_after_every_two_seconds() -> None:
    busy = given.refusal(Reason.DEVICE_BUSY, "", is_revoked=True)
    observation = given.mounted(mount=given.deleted(), setback=failed(Reason.DEVICE_BUSY, count=9))
    decision = refused(observation, busy)
    assert decision.requeue_after_s == 2.0
    assert decision.setback is not None
    assert decision.setback.until == NOW + 2.0, "nor is that pass held back"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            Reason.QUOTA_EXCEEDED,
            "exceeded quota: devices. It mounts when the quota has room: delete what counts "
            "against it, or have it raised.",
        ),
        (
            Reason.NOT_ALLOWED,
            "exceeded quota: devices. Have the policy changed, or the pod's namespace; it is "
            "tried again now and then.",
        ),
    ],
)
def test_a_refused_post_is_told_in_its_own_words(reason: Reason, message: str) -> None:
    decision = refused(given.observation(), given.refusal(reason, "exceeded quota: devices"))
    assert decision.report is not None
    assert (decision.report.reason, decision.report.message) == (reason, message)
    assert decision.requeue_after_s == 2.0
    assert decide(given.observation(setback=decision.setback, target=None)).actions == ()


def test_devices_that_open_are_not_called_unready_since_something_else_failed() -> None:
    decision = refused(given.mounted(), given.refusal(Reason.API_UNAVAILABLE, "conflict"))
    assert decision == Decision(requeue_after_s=2.0)


def test_what_is_not_revoked_stays_in_status() -> None:
    gone = given.refusal(Reason.AGENT_UNAVAILABLE, "the agent of node node1 does not answer")
    for lost in (given.mounted(shadows=()), given.observation(mount=given.mount(status=row()))):
        said = refused(lost, gone).report
        assert said is not None
        (row_,) = said.unproved
        assert (row_.pod_uid, row_.node, row_.shadow_pods) == (
            PLACE.target_uid,
            NODE,
            (SHADOW_NAME,),
        )
        written = report.render(lost, said).status
        assert written is not None
        after = given.mount(status=dict(written))
        assert chain.release.forgotten(given.observation(mount=after)) == (PLACE,)


def test_an_agent_that_does_not_answer_a_release_is_named() -> None:
    gone = given.refusal(Reason.AGENT_UNAVAILABLE, "the agent of node node1 does not answer")
    decision = refused(given.mounted(mount=given.deleted()), gone)
    assert decision.report is not None
    assert decision.report.reason is Reason.AGENT_UNAVAILABLE
    assert decision.requeue_after_s == 0.5


def test_a_deletion_on_a_node_that_is_not_lent_any_more_says_which_command_helps() -> None:
    absent = given.refusal(Reason.AGENT_UNAVAILABLE, "no agent runs on node node1")
    observation = given.mounted(
        mount=given.deleted(),
        agent=given.agent(nodes=frozenset(), grants=(given.grant(),)),
        node=given.node(enabled=False),
    )
    decision = refused(observation, absent)
    assert decision.report is not None
    assert decision.report.reason is Reason.NODE_NOT_ENABLED
    assert COMMAND in decision.report.message
    assert decision.requeue_after_s == 1.0
    lent = replace(observation, node=given.node())
    told = refused(lent, absent).report
    assert told is not None
    assert told.reason is Reason.AGENT_UNAVAILABLE


# Events


def test_unmounting_names_the_devices_that_were_mounted() -> None:
    devices = [{"resource": given.RESOURCE, "id": "vcs1"}]
    observation = given.mounted(mount=given.deleted(status=row(devices=devices)))
    (event,) = decide(observation).events
    assert (event.reason, event.message) == (
        "Unmounted",
        "took testbed.devicemount.io/vcs vcs1 from pod notebook-0",
    )


def test_what_was_never_mounted_ends_without_an_event() -> None:
    assert decide(given.observation(mount=given.deleted())).events == ()


# What a pass reads


@pytest.mark.parametrize(
    ("observation", "reads"),
    [
        pytest.param(given.observation(), True, id="nothing is reserved"),
        pytest.param(given.observation(mount=given.deleted()), False, id="deleted"),
        pytest.param(given.observation(mount=given.mount(suspend=True)), False, id="suspended"),
        pytest.param(given.mounted(), False, id="mounted"),
        pytest.param(unread(agent=APPLYING), False, id="the agent is at work"),
        pytest.param(given.observation(setback=failed()), False, id="held back"),
        pytest.param(given.observation(setback=failed(until=NOW)), True, id="not any more"),
        pytest.param(answered(Reason.AGENT_UNAVAILABLE), True, id="the agent refused"),
        pytest.param(
            unread(agent=given.agent(grants=(given.grant(),))),
            True,
            id="mounted by an earlier operator, which container is not known",
        ),
    ],
)
def test_the_target_is_read_only_where_it_matters(*, observation: Observation, reads: bool) -> None:
    assert needs_target(observation) is reads


def test_the_node_is_read_only_where_a_scheduler_complains_or_its_agent_is_absent() -> None:
    alone = given.agent(nodes=frozenset(), grants=(given.grant(),))
    assert needs_node(unplaced(TOO_FEW)) == NODE
    assert needs_node(given.observation(agent=given.agent(nodes=frozenset()))) == NODE
    assert needs_node(given.mounted(mount=given.deleted(), agent=alone)) == NODE
    assert needs_node(unread()) is None
    former = given.shadow(place=replace(PLACE, node=NodeName("node2")))
    returned = given.agent(released=frozenset({SHADOW_UID}))
    assert needs_node(unread(shadows=(former,))) == "node2"
    assert needs_node(unread(shadows=(former,), agent=returned)) is None
    assert needs_node(given.observation()) is None
    assert needs_node(given.mounted()) is None


def test_nodes_are_asked_for_facts_only_before_a_reservation_and_while_it_is_not_placed() -> None:
    assert needs_facts(given.observation()) == NODE
    assert needs_facts(unplaced(TOO_FEW)) == NODE
    starting = given.target(containers=(given.container(state=ContainerState.WAITING),))
    for quiet in (
        given.mounted(),
        unread(agent=APPLYING),
        given.observation(target=starting),
        given.observation(setback=failed()),
        given.observation(mount=given.deleted()),
        unplaced(TOO_FEW, mount=given.deleted()),
        given.mounted(shadows=(given.shadow(scheduled=False),)),
        given.observation(agent=given.agent(nodes=frozenset())),
    ):
        assert needs_facts(quiet) is None


def test_a_priority_class_is_read_only_where_one_is_named() -> None:
    named = given.mount(reservation={"priorityClassName": "urgent"})
    assert needs_priority(given.observation()) is None
    assert needs_priority(given.observation(mount=named)) == "urgent"
    assert needs_priority(given.mounted(mount=named)) is None
