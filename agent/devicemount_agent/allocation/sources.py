# SPDX-License-Identifier: Apache-2.0
"""Asks the readers in the order of the profile, and joins what they say.

`checkpoint` and `cdi` are two halves of one thing, what the kubelet tells the runtime, so both
count. The others are asked in turn as long as no node is known. What a resolver or a running shadow
container says besides must agree: expected is contained in observed, or it is an error with both
sides in it. What nobody understood is AllocationUnknown, never a success without a device.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from devicemount_agent.allocation import annotations
from devicemount_agent.allocation.annotations import Sandboxes
from devicemount_agent.allocation.kubelet import Entry
from devicemount_agent.allocation.resolver import Disagreement, Resolving, paths
from devicemount_agent.allocation.said import (
    NAMED,
    Ask,
    Reader,
    Said,
    Subject,
    answer_of,
    besides,
    joined,
    without,
)
from devicemount_agent.errors import (
    AllocationUnknown,
    EnvFileNeeded,
    NotAllowed,
    UnsupportedResource,
)
from devicemount_agent.model import Access, Device, DeviceNode
from devicemount_agent.profiles.profile import Profile, SourceName
from devicemount_agent.profiles.store import Profiles

TOLD: tuple[SourceName, ...] = ("checkpoint", "cdi")  # what the kubelet tells the runtime
SHOWN: tuple[SourceName, ...] = ("bundle", "live")  # what the shadow pod's container has


@dataclass(frozen=True, slots=True)
class ReaderSources:
    """All readers of the node."""

    profiles: Profiles
    readers: Mapping[SourceName, Reader]
    resolving: Resolving  # the reader `resolver`, whose expectation is compared too
    sandboxes: Sandboxes

    async def devices(self, entries: Iterable[Entry], ask: Ask) -> tuple[Device, ...]:
        """Return the devices of a shadow pod; an answer belongs to all of its ids."""
        subjects = _together([self._subject(entry, ask) for entry in entries])
        for subject in subjects:  # what is refused, before anything is waited for
            _check_served(subject)
            _check_env(subject, subject.answer.envs, ask)
        if all(subject.profile.counts_only for subject in subjects):
            names = ", ".join(subject.resource for subject in subjects)
            raise UnsupportedResource(f"{names} only counts beside another resource: ask for both")
        return tuple(
            chain.from_iterable([await self._devices(subject, ask) for subject in subjects])
        )

    def _subject(self, entry: Entry, ask: Ask) -> Subject:
        answer = answer_of(entry)
        mounts = tuple(mount.container_path for mount in answer.mounts)
        profile = self.profiles.of(entry.resource, answer.envs, mounts)
        return Subject(entry.resource, entry.ids, answer, profile, ask.shadow.uid)

    async def _devices(self, subject: Subject, ask: Ask) -> tuple[Device, ...]:
        if subject.profile.counts_only:
            return ()
        await annotations.check(self.sandboxes, subject)
        try:
            said = await self._said(subject)
        except (AllocationUnknown, NotAllowed) as error:
            kind = NotAllowed if isinstance(error, NotAllowed) else AllocationUnknown
            raise kind(f"{error}{self._rejected(subject)}") from error
        _check_env(subject, (variable.name for variable in said.edits.env), ask)
        said = without(said, env=subject.profile.ignore_env)
        return tuple(
            Device(subject.resource, id_, said.nodes, said.edits) for id_ in sorted(subject.ids)
        )

    async def _said(self, subject: Subject) -> Said:
        profile = subject.profile
        told = [
            said
            for name in profile.source
            if name in TOLD and (said := await self.readers[name].read(subject)) is not None
        ]
        said = joined(subject.resource, *told)
        if said.gives_device():
            await self._check_expected(subject, said)
        elif not (profile.mounts_only and said.edits.mounts):
            said = joined(subject.resource, said, await self._otherwise(subject))
        if profile.confirm is not None:
            said = await self._confirmed(subject, said, by=profile.confirm)
        return joined(subject.resource, said, Said(edits=await self.resolving.always(subject)))

    async def _otherwise(self, subject: Subject) -> Said:
        """Ask those that are asked only while no node is known."""
        unsaid: list[str] = []
        for name in subject.profile.source:
            if name in TOLD:
                continue
            try:
                said = await self.readers[name].read(subject)
            except Disagreement:
                raise
            except AllocationUnknown as error:
                unsaid.append(f"{name}: {error}")
                continue
            if said is not None and said.gives_device():
                if name in SHOWN:
                    self._check_count(subject, said, by=name)
                return said
            unsaid.append(f"{name} shows no device")
        raise AllocationUnknown(self._nothing(subject, unsaid))

    def _check_count(self, subject: Subject, said: Said, *, by: SourceName) -> None:
        """Raise Disagreement where more devices are shown than the kubelet counts."""
        shown = self.resolving.count(subject, said.nodes)
        if shown > len(subject.ids) + subject.beside:
            raise Disagreement(
                f"{subject.resource}: the kubelet counts {', '.join(sorted(subject.ids)[:NAMED])}"
                f" and the shadow pod has {paths(said.nodes)} ({by}), which is {shown} devices"
            )

    async def _check_expected(self, subject: Subject, said: Said) -> None:
        expected = await self.resolving.expected(subject)
        if missing := _missing(expected, said.nodes):
            raise AllocationUnknown(
                f"{subject.resource}: {paths(expected)} is what the kubelet counts, and the device"
                f" plugin's answer gives {paths(said.nodes)}, without {paths(missing)}: another"
                " scheduler (Volcano, HAMi) decides, or the answer is out of date"
            )

    async def _confirmed(self, subject: Subject, expected: Said, *, by: SourceName) -> Said:
        """Hold what is expected against what the running shadow container shows.

        One that shows no device of the resource was started without the vendor's runtime: then
        there is nothing to compare. What it shows besides is what the vendor's runtime adds
        (control nodes, libraries); another device of the resource is a contradiction.
        """
        observed = await self.readers[by].read(subject)
        if observed is None:
            return expected
        both = (
            f"{subject.resource}: {paths(expected.nodes)} is expected and the shadow pod has"
            f" {paths(observed.nodes)} ({by})"
        )
        opened = (node for node in expected.nodes if node.access is not Access.NONE)
        if missing := _missing(opened, observed.nodes):
            raise AllocationUnknown(f"{both}, without {paths(missing)}")
        known = {node.path for node in expected.nodes}  # what may be done with them is known better
        more = tuple(node for node in observed.nodes if node.path not in known)
        others = self.resolving.unnamed(subject, more)
        if len(others) > subject.beside:
            raise AllocationUnknown(
                f"{both}, with {paths(others)}, which nothing says it was given"
            )
        more = tuple(node for node in more if node not in others)
        return joined(subject.resource, expected, Said(more, observed.edits))

    def _nothing(self, subject: Subject, unsaid: Iterable[str]) -> str:
        """Return why nothing is known."""
        answered = _kinds(subject)
        more = "".join(f"; {reason}" for reason in unsaid)
        return (
            f"{subject.resource}: the device plugin answered {answered}, no device nodes{more}"
            f" (profile {subject.profile.name})"
        )

    def _rejected(self, subject: Subject) -> str:
        """Return the profiles that were meant to help, or may have been, and are bad."""
        return besides("rejected", [str(f) for f in self.profiles.faults(subject.resource)])


def _together(subjects: list[Subject]) -> list[Subject]:
    """Let each know how many devices the pod has of others, which its container shows as well."""

    def beside(subject: Subject) -> int:
        node_map = subject.profile.node_map
        return sum(
            len(other.ids)
            for other in subjects
            if other is not subject and node_map and other.profile.node_map
            if other.profile.node_map.resolver == node_map.resolver
        )

    return [replace(subject, beside=beside(subject)) for subject in subjects]


def _check_served(subject: Subject) -> None:
    if subject.profile.refused is not None:
        raise UnsupportedResource(f"{subject.resource}: {subject.profile.refused}")


def _check_env(subject: Subject, names: Iterable[str], ask: Ask) -> None:
    critical = sorted(subject.profile.critical(names))
    if critical and not ask.accept_env_file:
        raise EnvFileNeeded(env_needed(subject.resource, subject.profile, critical))


def env_needed(resource: str, profile: Profile, names: Iterable[str]) -> str:
    """Return the sentence for a resource whose environment does not reach running processes."""
    return (
        f"{resource} works by the variables {', '.join(names)} (profile {profile.name}), which a"
        " running process cannot be given: reservation.acceptEnvFile says that programs read them"
        " from the env file"
    )


def _missing(
    expected: Iterable[DeviceNode], observed: Iterable[DeviceNode]
) -> tuple[DeviceNode, ...]:
    """Return what is expected at a path and is not observed there, as that device, to be opened."""
    there = {(node.path, node.number) for node in observed if node.access is not Access.NONE}
    return tuple(node for node in expected if (node.path, node.number) not in there)


def _kinds(subject: Subject) -> str:
    answer = subject.answer
    kinds = {
        "mounts": answer.mounts,
        "environment variables": answer.envs,
        "annotations": answer.annotations,
        "CDI names": answer.cdi_devices,
    }
    return " and ".join(kind for kind, given in kinds.items() if given) or "nothing"
