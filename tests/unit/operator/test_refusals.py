# SPDX-License-Identifier: Apache-2.0
"""Who said no to a shadow pod, and which reason of the table that is."""

import pytest

from devicemount_operator import errors
from devicemount_operator.act import refusal_of
from devicemount_operator.errors import ForbiddenBy
from devicemount_operator.reasons import TABLE, Kind, Reason


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        (ForbiddenBy.QUOTA, Reason.QUOTA_EXCEEDED),
        (ForbiddenBy.LIMITS, Reason.NOT_ALLOWED),
        (ForbiddenBy.PRIORITY_GONE, Reason.NOT_ALLOWED),
        (ForbiddenBy.PRIORITY_DEFAULT, Reason.NOT_ALLOWED),
        (ForbiddenBy.ACCOUNT, Reason.WEBHOOK_UNAVAILABLE),
        (ForbiddenBy.POLICY, Reason.NOT_ALLOWED),
        (ForbiddenBy.RBAC, Reason.NOT_ALLOWED),
        (ForbiddenBy.NAMESPACE, Reason.NAMESPACE_TERMINATING),
    ],
)
def test_each_who_forbids_has_a_reason_and_its_own_words(by: ForbiddenBy, reason: Reason) -> None:
    refusal = refusal_of(errors.Forbidden("in their words", status=403, by=by), now=1.0)
    assert (refusal.reason, refusal.message) == (reason, "in their words")


def test_everybody_who_forbids_is_in_the_table_above() -> None:
    for by in ForbiddenBy:
        refusal_of(errors.Forbidden("no", status=403, by=by), now=1.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.WebhookUnavailable("w does not answer", status=500), Reason.WEBHOOK_UNAVAILABLE),
        (errors.Unreachable("refused"), Reason.API_UNAVAILABLE),
        (errors.RequestTaken("only 0 of 1"), Reason.INSUFFICIENT),
    ],
)
def test_what_is_no_refusal_is_waited_for(error: errors.DeviceMountError, reason: Reason) -> None:
    assert refusal_of(error, now=1.0).reason is reason
    assert TABLE[reason].kind is Kind.WAITING
