# SPDX-License-Identifier: Apache-2.0
"""What the API server can answer, one class a fact; and the loss of the right to write to it.

Most of it is no failure of a mount (a conflict, an object that is gone): `act` says which answer is
which reason of the table (`reasons`), and there stands whether and how soon trying again can help.
"""

from enum import Enum


class DeviceMountError(Exception):
    """Root of everything that the operator raises on purpose."""


class LeaseLost(DeviceMountError):
    """Another may hold the Lease now: nothing may be written any more."""


class ApiError(DeviceMountError):
    """The API server refused or failed a request."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ApiError):
    """The API server did not answer, or with an error of its own (5xx)."""


class WebhookUnavailable(Unreachable):
    """A webhook that the request has to pass does not answer: nothing was written."""


class NotConnected(Unreachable):
    """There is no connection to it, or none any more: nobody gets an answer now."""


class NotFound(ApiError):
    """The object that the request names does not exist."""


class ResourceNotServed(ApiError):
    """The API server does not know the kind (a CRD that is not there yet).

    Says nothing about any object.
    """


class Conflict(ApiError):
    """Somebody else wrote first, or a precondition does not hold."""


class AlreadyExists(ApiError):
    """An object of that name exists."""


class Expired(ApiError):
    """The resourceVersion to watch from is too old: list again."""


class TooLarge(ApiError):
    """The answer is longer than is read: whoever lists asks for fewer objects at a time."""


class Invalid(ApiError):
    """The API server's validation refuses the object."""


class TooManyRequests(ApiError):
    """The API server asks to wait."""

    def __init__(self, message: str, *, status: int, retry_after_s: float) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class ForbiddenBy(Enum):
    """Who refuses."""

    QUOTA = "quota"
    LIMITS = "limits"  # a LimitRange: too small, too large, or too far between request and limit
    PRIORITY_GONE = "priority gone"  # the class that is named does not exist any more
    PRIORITY_DEFAULT = "priority default"  # where none is named, pods get another priority
    ACCOUNT = "account"  # the namespace's default service account is not there (yet)
    POLICY = "policy"  # an admission policy, plug-in or webhook
    RBAC = "rbac"  # the operator's own rights
    NAMESPACE = "namespace"  # it is terminating: nothing can be created in it


class RequestTaken(DeviceMountError):
    """Somebody on its way in took the request for devices from a pod of ours."""


class Forbidden(ApiError):
    """An admission check or the authorizer refuses the request."""

    def __init__(self, message: str, *, status: int, by: ForbiddenBy) -> None:
        super().__init__(message, status=status)
        self.by = by
