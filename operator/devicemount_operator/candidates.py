# SPDX-License-Identifier: Apache-2.0
"""The pods that selectors may mean: their metadata, watched in the namespaces where a selector is
in use, and in no others.

Metadata alone (PartialObjectMetadata) is a twentieth of a pod. Shadow pods are left out by the
server, and so are pods that have ended: the watch tells one that ends as deleted. A pod that
changes wakes the mounts whose selector it matches, or did: a status that is written tells that a
container may run by now.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from devicemount_operator import pods, shadow_pod
from devicemount_operator.api.v1alpha1 import LabelSelector
from devicemount_operator.decide.observation import PodUID
from devicemount_operator.decide.split import Candidate, matches
from devicemount_operator.reflector import Changed, Content, Listed, Reflector, Selection
from devicemount_operator.transport import JsonObject

log = logging.getLogger(__name__)

MAX_LABELS: Final = 8192  # characters of a pod's labels: the API server takes a megabyte

_LIVING: Final = "status.phase!=Succeeded,status.phase!=Failed"
_KEPT: Final = ("name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")


def living_pods(namespace: str) -> Selection:
    """Every pod of a namespace that could be a target."""
    return Selection(
        f"/api/v1/namespaces/{namespace}/pods",
        f"!{shadow_pod.LABEL}",
        field_selector=_LIVING,
        content=Content.METADATA,
        kept=_bare,
    )


class Candidates:
    """By namespace."""

    def __init__(
        self, *, reflector: Callable[[Selection], Reflector], wake: Callable[[str], None]
    ) -> None:
        self._reflector = reflector
        self._wake = wake
        self._users: dict[str, dict[str, LabelSelector]] = {}  # namespace -> mount UID -> selector
        self._namespaces: dict[str, str] = {}  # mount UID -> namespace
        self._pods: dict[str, dict[PodUID, Candidate]] = {}  # of the namespaces that are listed
        self._changed = asyncio.Event()

    def use(self, namespace: str, *, mount_uid: str, selector: LabelSelector) -> None:
        """Have the namespace watched, for this mount among others."""
        if namespace not in self._users:
            self._users[namespace] = {}
            self._changed.set()
        self._users[namespace][mount_uid] = selector
        self._namespaces[mount_uid] = namespace

    def leave(self, mount_uid: str) -> None:
        """Watch nothing for this mount any more; what nobody uses is not watched."""
        namespace = self._namespaces.pop(mount_uid, None)
        if namespace is None:
            return
        users = self._users[namespace]
        del users[mount_uid]
        if not users:
            del self._users[namespace]
            self._changed.set()

    def of(self, namespace: str) -> tuple[Candidate, ...] | None:
        """Return the pods of a namespace; None: not known yet, who asked is woken when they are."""
        known = self._pods.get(namespace)
        return None if known is None else tuple(known.values())

    async def run(self) -> None:
        """Watch for ever what is in use."""
        following: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for namespace in following.keys() - self._users.keys():
                    following.pop(namespace).cancel()
                    self._pods.pop(namespace, None)
                for namespace in self._users.keys() - following.keys():
                    stream = self._reflector(living_pods(namespace))
                    following[namespace] = group.create_task(self._follow(namespace, stream))
                await self._changed.wait()

    async def _follow(self, namespace: str, stream: Reflector) -> None:
        log.info("pods are watched, since a selector is in use namespace=%s", namespace)
        async for event in stream.events():
            match event:
                case Listed(objects):
                    self._listed(namespace, (_parsed(packed.raw) for packed in objects))
                case Changed(raw, deleted=is_gone):
                    pod = None if is_gone else _parsed(_bare(raw))
                    self._changed_to(namespace, pods.uid_of(raw), pod)

    def _listed(self, namespace: str, found: Iterable[Candidate | None]) -> None:
        """Take in what exists; everybody looks again, since nobody knows what was missed."""
        self._pods[namespace] = {pod.uid: pod for pod in found if pod is not None}
        for mount_uid in self._users.get(namespace, ()):
            self._wake(mount_uid)

    def _changed_to(self, namespace: str, uid: PodUID, pod: Candidate | None) -> None:
        """Take in what a pod is now. None: it is gone."""
        known = self._pods.setdefault(namespace, {})
        before = known.pop(uid, None)
        if pod is not None:
            known[uid] = pod
        both = [each for each in (before, pod) if each is not None]
        for mount_uid, selector in self._users.get(namespace, {}).items():
            if any(matches(selector, each.labels) for each in both):
                self._wake(mount_uid)


def _bare(raw: JsonObject) -> JsonObject:
    """Return what is read of a pod's metadata; of more labels than anybody has, none."""
    meta = raw["metadata"]
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    is_bounded = sum(len(key) + len(value) for key, value in labels.items()) <= MAX_LABELS
    return {
        "metadata": {
            **{name: meta[name] for name in _KEPT if name in meta},
            "labels": labels if is_bounded else None,
            "annotations": {k: v for k, v in annotations.items() if k == pods.STATIC},
        }
    }


def _parsed(raw: JsonObject) -> Candidate | None:
    """Parse what `_bare` has left; None: with so many labels it is no selector's target."""
    meta = raw["metadata"]
    if meta["labels"] is None:
        return None
    return Candidate(
        uid=pods.uid_of(raw),
        name=meta["name"],
        labels=meta["labels"],
        created=meta.get("creationTimestamp") or "",
        deleting="deletionTimestamp" in meta,
    )
