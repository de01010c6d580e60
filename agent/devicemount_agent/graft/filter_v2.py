# SPDX-License-Identifier: Apache-2.0
"""Device permission on cgroup v2: every attached device program, wrapped in place.

All programs of a cgroup and its ancestors must allow, so adding one can never grant. `apply` makes
what the kernel holds equal to what is wanted, whoever ran before: first grant, later grant, repair,
revoke, and after a restart of the agent. Nothing is pinned; the state is found again by the names
of program and maps. A program is only ever replaced, never detached and attached: in between
everything would be allowed. Detached is one of ours only, and only where its original is there too.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from devicemount_agent.errors import FilterBlocked
from devicemount_agent.graft.device_program import (
    KEY_BYTES,
    MAX_DEVICES,
    VALUE_BYTES,
    NotReloadable,
    Original,
    allows_all,
    from_key,
    from_saved,
    reloadable,
    supersedes,
    to_key,
    to_saved,
    to_value,
    wrap,
)
from devicemount_agent.kernel import bpf
from devicemount_agent.kernel.files import closing
from devicemount_agent.model import Access, DeviceNumber

PROGRAM_NAME = "devicemount"  # at most 15 characters, like the maps' names
ALLOW_NAME = "dmount_allow"
ORIGINAL_NAME = "dmount_original"

_ONLY_KEY = bytes(4)  # of the one-element array that holds the original
_ATTEMPTS = 20  # each one is lost only to a runtime that swaps the program at that very moment


@dataclass(frozen=True, slots=True)
class _Foreign:
    """An attached program that is not ours."""

    fd: int
    info: bpf.ProgramInfo


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """An attached program of ours, with its two maps."""

    fd: int
    info: bpf.ProgramInfo
    allow_fd: int
    saved: bytes  # the original, not yet decoded: that may fail, and ending access must not


@dataclass(frozen=True, slots=True)
class Applied:
    """What is attached to one cgroup, after each program was seen to be as wanted."""

    program_ids: tuple[int, ...]
    is_restricted: bool  # a program among them may deny
    was_made: bool  # it was not so before


def apply(cgroup: Path, want: Mapping[DeviceNumber, Access]) -> Applied:
    """Make the grafted permissions of one cgroup exactly `want`.

    Empty puts the original programs back. A program that allows all is left alone. Raises
    FilterBlocked when a program cannot be wrapped, which then goes on denying, OSError EAGAIN when
    somebody keeps replacing it, FileNotFoundError when the cgroup is gone.
    """
    with closing(_opened(cgroup)) as cgroup_fd:
        before = bpf.prog_query(cgroup_fd).program_ids
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError):  # a program was swapped meanwhile: look again
                _apply(cgroup, cgroup_fd, want)
                applied = _settled(cgroup_fd, want, before=before)
                if applied is not None:
                    return applied
    raise OSError(errno.EAGAIN, "the device filter keeps being replaced", str(cgroup))


def attached(cgroup: Path) -> tuple[int, ...]:
    """Return the programs of this cgroup itself. Raises FileNotFoundError when it is gone."""
    with closing(_opened(cgroup)) as cgroup_fd:
        return bpf.prog_query(cgroup_fd).program_ids


def may_deny(cgroup: Path) -> bool:
    """Say whether a program of this cgroup itself does more than to allow all.

    Raises FileNotFoundError when it is gone.
    """
    for program_id in attached(cgroup):
        with suppress(FileNotFoundError), closing(bpf.prog_get_fd_by_id(program_id)) as prog_fd:
            if not allows_all(bpf.prog_info(prog_fd).instructions):
                return True
    return False


def effective(cgroup: Path) -> bytes:
    """Return which programs run for this cgroup, as bpf.EffectivePrograms says it."""
    with closing(_opened(cgroup)) as cgroup_fd:
        return bpf.EffectivePrograms().of(cgroup_fd)


def granted(cgroup: Path) -> frozenset[DeviceNumber]:
    """Return what programs of ours allow there by their maps, whatever records say."""
    with closing(_opened(cgroup)) as cgroup_fd, ExitStack() as stack:
        programs = [_open(i, stack) for i in bpf.prog_query(cgroup_fd).program_ids]
        return frozenset(
            from_key(key)
            for program in programs
            if isinstance(program, _Wrapped)
            for key in bpf.map_keys(program.allow_fd, key_bytes=KEY_BYTES)
        )


def _opened(cgroup: Path) -> int:
    return os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _apply(cgroup: Path, cgroup_fd: int, want: Mapping[DeviceNumber, Access]) -> None:
    query = bpf.prog_query(cgroup_fd)
    with ExitStack() as stack:
        attached = [_open(program_id, stack) for program_id in query.program_ids]
        foreign = [program for program in attached if isinstance(program, _Foreign)]
        wrapped = [program for program in attached if isinstance(program, _Wrapped)]
        if want:
            denying = [program for program in foreign if not allows_all(program.info.instructions)]
            for ours in wrapped:
                _set_allowed(ours.allow_fd, want)  # before what may fail: some of it may end access
            originals = [_reloadable(cgroup, program) for program in denying]
            for program, original in zip(denying, originals, strict=True):
                # First, for copies must not pile up whenever we are killed: the newcomer denies
                # what both of them deny.
                for ours in [one for one in wrapped if _is_superseded(one, [original])]:
                    bpf.prog_detach(cgroup_fd, ours.fd)
                    wrapped.remove(ours)
                _wrap(cgroup, cgroup_fd, query.flags, program=program, original=original, want=want)
            return
        for ours in wrapped:
            _set_allowed(ours.allow_fd, {})  # access ends here, before anything that may fail
        present = [_as_dumped(program) for program in foreign]
        for ours in wrapped:
            if _is_superseded(ours, present):
                bpf.prog_detach(cgroup_fd, ours.fd)
            else:
                _unwrap(cgroup, cgroup_fd, query.flags, ours=ours)


def _settled(
    cgroup_fd: int, want: Mapping[DeviceNumber, Access], *, before: tuple[int, ...]
) -> Applied | None:
    """Read back: with wishes every program that may deny is ours, without none is; else None."""
    program_ids = bpf.prog_query(cgroup_fd).program_ids
    with ExitStack() as stack:
        attached = [_open(program_id, stack) for program_id in program_ids]
    restricting = [
        program
        for program in attached
        if isinstance(program, _Wrapped) or not allows_all(program.info.instructions)
    ]
    if any(isinstance(program, _Wrapped) is not bool(want) for program in restricting):
        return None
    return Applied(
        program_ids=program_ids,
        is_restricted=bool(restricting),
        was_made=set(program_ids) != set(before),
    )


def _open(program_id: int, stack: ExitStack) -> _Foreign | _Wrapped:
    """Open an attached program and, where it is ours, its maps. Raises FileNotFoundError."""
    fd = stack.enter_context(closing(bpf.prog_get_fd_by_id(program_id)))
    info = bpf.prog_info(fd)
    if info.name != PROGRAM_NAME:
        return _Foreign(fd=fd, info=info)
    maps: dict[str, tuple[int, bpf.MapInfo]] = {}
    for map_id in info.map_ids:
        map_fd = stack.enter_context(closing(bpf.map_get_fd_by_id(map_id)))
        described = bpf.map_info(map_fd)
        maps[described.name] = (map_fd, described)
    if maps.keys() != {ALLOW_NAME, ORIGINAL_NAME}:
        return _Foreign(fd=fd, info=info)
    saved_fd, saved = maps[ORIGINAL_NAME]
    value = bpf.map_lookup(saved_fd, _ONLY_KEY, value_bytes=saved.value_size_bytes)
    return _Wrapped(fd=fd, info=info, allow_fd=maps[ALLOW_NAME][0], saved=value)


def _reloadable(cgroup: Path, program: _Foreign) -> Original:
    try:
        code = reloadable(program.info.instructions)
    except NotReloadable as error:
        raise _blocked(cgroup, program, str(error)) from error
    return Original(id=program.info.id, name=program.info.name, instructions=code)


def _as_dumped(program: _Foreign) -> Original:
    """Return what is attached, to be compared, also where it could not be loaded again."""
    code = program.info.instructions
    with suppress(NotReloadable):
        code = reloadable(code)
    return Original(id=program.info.id, name=program.info.name, instructions=code)


def _is_superseded(ours: _Wrapped, present: Iterable[Original]) -> bool:
    """Say whether the owner of the original has attached it, or its successor, again."""
    try:
        original = from_saved(ours.saved)
    except NotReloadable:
        return False
    return any(supersedes(one, original) for one in present)


def _wrap(
    cgroup: Path,
    cgroup_fd: int,
    flags: int,
    *,
    program: _Foreign,
    original: Original,
    want: Mapping[DeviceNumber, Access],
) -> None:
    with (
        closing(_create_allow_map(want)) as allow_fd,
        closing(_create_original_map(original)) as original_fd,
        closing(
            bpf.prog_load(
                wrap(original.instructions, allow_fd=allow_fd, original_fd=original_fd),
                is_gpl=program.info.is_gpl,
                name=PROGRAM_NAME,
            )
        ) as prog_fd,
    ):
        try:
            bpf.prog_attach(cgroup_fd, prog_fd, flags=flags, replaced_fd=program.fd)
        except FileNotFoundError as error:
            if program.info.id not in bpf.prog_query(cgroup_fd).program_ids:
                raise
            raise _blocked(cgroup, program, "it is attached by a bpf_link") from error


def _unwrap(cgroup: Path, cgroup_fd: int, flags: int, *, ours: _Wrapped) -> None:
    """Put the original back: that very program where something else kept it alive, else a copy."""
    try:
        original = from_saved(ours.saved)
    except NotReloadable as error:
        raise _blocked(cgroup, ours, str(error)) from error
    living = _living(original)
    fd = _copy(original, is_gpl=ours.info.is_gpl) if living is None else living
    with closing(fd) as prog_fd:
        bpf.prog_attach(cgroup_fd, prog_fd, flags=flags, replaced_fd=ours.fd)


def _living(original: Original) -> int | None:
    """Return a descriptor of the original program itself, if it still exists."""
    try:
        fd = bpf.prog_get_fd_by_id(original.id)
    except FileNotFoundError:
        return None
    try:
        if reloadable(bpf.prog_info(fd).instructions) == original.instructions:
            return fd
    except NotReloadable:
        pass  # the id is another program's by now
    os.close(fd)
    return None


def _copy(original: Original, *, is_gpl: bool) -> int:
    return bpf.prog_load(original.instructions, is_gpl=is_gpl, name=original.name)


def _create_allow_map(want: Mapping[DeviceNumber, Access]) -> int:
    fd = bpf.map_create(
        bpf.BPF_MAP_TYPE_HASH,
        key_bytes=KEY_BYTES,
        value_bytes=VALUE_BYTES,
        entries=MAX_DEVICES,
        flags=bpf.BPF_F_NO_PREALLOC,
        name=ALLOW_NAME,
    )
    try:
        _set_allowed(fd, want)
    except OSError:
        os.close(fd)
        raise
    return fd


def _create_original_map(original: Original) -> int:
    value = to_saved(original)
    fd = bpf.map_create(
        bpf.BPF_MAP_TYPE_ARRAY,
        key_bytes=len(_ONLY_KEY),
        value_bytes=len(value),
        entries=1,
        flags=0,
        name=ORIGINAL_NAME,
    )
    try:
        bpf.map_update(fd, _ONLY_KEY, value)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_allowed(allow_fd: int, want: Mapping[DeviceNumber, Access]) -> None:
    """Make the allow map equal to `want`, taking away before giving."""
    wanted = {to_key(number): to_value(access) for number, access in want.items()}
    for key in list(bpf.map_keys(allow_fd, key_bytes=KEY_BYTES)):
        if key not in wanted:
            bpf.map_delete(allow_fd, key)
    for key, value in wanted.items():
        bpf.map_update(allow_fd, key, value)


def _blocked(cgroup: Path, program: _Foreign | _Wrapped, why: str) -> FilterBlocked:
    name = program.info.name or "without a name"
    return FilterBlocked(
        f"device program {program.info.id} ({name}) of {cgroup} cannot be replaced: {why}"
    )
