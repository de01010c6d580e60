# SPDX-License-Identifier: Apache-2.0
"""Everything the agent refuses, one class a fact; its name is the condition's reason."""

from enum import Enum


class Retry(Enum):
    """Whether asking again can help."""

    NEVER = "never"  # not until the object or the node changes
    BACKOFF = "backoff"  # it ends by itself
    ON_CHANGE = "on_change"  # something that we watch will tell


class DeviceMountError(Exception):
    """Root of all errors that the agent answers with."""

    retry = Retry.BACKOFF


class TargetNotRunning(DeviceMountError):
    """The target container does not run (yet, or any more)."""

    retry = Retry.ON_CHANGE


class ContainerMismatch(DeviceMountError):
    """What the runtime says of the container contradicts the request or the kernel."""


class Insufficient(DeviceMountError):
    """The kubelet gave fewer devices than asked."""


class AllocationUnknown(DeviceMountError):
    """The device plugin's answer names no device node that the agent understands."""


class NotAllowed(DeviceMountError):
    """The request names what no mount may have: a foreign shadow pod, a path outside /dev."""

    retry = Retry.NEVER


class EnvFileNeeded(DeviceMountError):
    """The device works by its environment, which a running process cannot be given."""

    retry = Retry.NEVER


class UnsupportedResource(DeviceMountError):
    """The profile of the resource refuses it by name, and says why."""

    retry = Retry.NEVER


class PathConflict(DeviceMountError):
    """Something else stands at the device's path in the container."""

    retry = Retry.NEVER


class UnsupportedRuntime(DeviceMountError):
    """The agent does not graft into a container of this shape (yet); the message names it."""

    retry = Retry.NEVER


class FilterBlocked(DeviceMountError):
    """A device filter of an ancestor cgroup, or one that cannot be wrapped, denies the device."""

    retry = Retry.NEVER


class ReservationLost(DeviceMountError):
    """The device is not the shadow pod's (any more)."""


class StaleRequest(DeviceMountError):
    """A newer request (epoch, revision) of this mount has been seen."""

    retry = Retry.NEVER


class StillReserved(DeviceMountError):
    """An Apply omits a shadow pod that still lives and has devices granted."""


class NodeUnavailable(DeviceMountError):
    """Kubelet or runtime do not answer."""
