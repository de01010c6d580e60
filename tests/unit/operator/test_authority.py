# SPDX-License-Identifier: Apache-2.0
"""When the operator's own certificates are made anew, and when a former authority is forgotten."""

import datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from devicemount_agent_api.identity import dns_names, is_signed_by
from devicemount_operator.authority import (
    AUTHORITY_LIFE,
    LAST_MOMENT,
    LEAF_LIFE,
    RENEW_BEFORE,
    Certificates,
    Renewed,
    issue,
    made_at,
    make_authority,
    renewed,
)

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
MINUTE = datetime.timedelta(minutes=1)


def first() -> Renewed:
    return renewed(Certificates(), known=False, now=NOW)


def held(made: Renewed) -> Certificates:
    """What an operator reads that finds what another one wrote."""
    return Certificates(
        signing=made.signing, older=made.older, operator=made.operator, agents=made.agents
    )


def usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_where_there_is_nothing_all_is_made() -> None:
    made = first()
    assert made.trusted == (made.signing.certificate,)
    for leaf, name, usage in (
        (made.operator, "devicemount-operator", ExtendedKeyUsageOID.CLIENT_AUTH),
        (made.agents, "devicemount-agent", ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        assert is_signed_by(leaf.certificate, made.signing.certificate)
        assert dns_names(leaf.certificate) == [name]
        assert usages(leaf.certificate) == [usage]


def test_what_lasts_is_left_as_it_is() -> None:
    made = first()
    assert renewed(held(made), known=False, now=NOW + MINUTE) == made


def test_a_leaf_is_renewed_sixty_days_before_its_end() -> None:
    made = first()
    almost = NOW + LEAF_LIFE - RENEW_BEFORE
    assert renewed(held(made), known=True, now=almost - SECOND) == made
    later = renewed(held(made), known=True, now=almost)
    assert later.signing == made.signing
    assert later.operator != made.operator
    assert later.agents != made.agents
    assert later.older == ()


def test_a_leaf_ends_no_later_than_its_authority() -> None:
    made = first()
    near = NOW + AUTHORITY_LIFE - RENEW_BEFORE - SECOND
    leaf = renewed(held(made), known=True, now=near).operator.certificate
    assert leaf.not_valid_after_utc == made.signing.certificate.not_valid_after_utc


def test_a_new_authority_is_trusted_first_shown_by_agents_then_by_the_operator() -> None:
    made = first()
    end = NOW + AUTHORITY_LIFE - RENEW_BEFORE
    before = renewed(held(made), known=True, now=end - 90 * 24 * 60 * MINUTE)
    assert before.signing == made.signing

    published = renewed(held(before), known=True, now=end)
    assert published.trusted == (published.signing.certificate, made.signing.certificate)
    assert published.operator == before.operator
    assert is_signed_by(published.agents.certificate, published.signing.certificate)

    assert renewed(held(published), known=False, now=end + MINUTE) == published

    switched = renewed(held(published), known=True, now=end + MINUTE)
    assert is_signed_by(switched.operator.certificate, switched.signing.certificate)
    assert switched.trusted == published.trusted

    assert renewed(held(switched), known=False, now=end + MINUTE) == switched

    done = renewed(held(switched), known=True, now=end + 2 * MINUTE)
    assert done.trusted == (published.signing.certificate,)
    assert (done.operator, done.agents) == (switched.operator, switched.agents)


def test_agents_that_never_follow_are_waited_for_until_thirty_days_before_the_end() -> None:
    made = first()
    published = renewed(
        Certificates(older=made.trusted, operator=made.operator, agents=made.agents),
        known=False,
        now=NOW,
    )
    last = made.operator.certificate.not_valid_after_utc - LAST_MOMENT
    kept = renewed(held(published), known=False, now=last - SECOND)
    assert kept.operator == made.operator
    now = renewed(held(published), known=False, now=last)
    assert is_signed_by(now.operator.certificate, published.signing.certificate)


def test_an_expired_former_authority_is_forgotten() -> None:
    made = first()
    published = renewed(
        Certificates(older=made.trusted, operator=made.operator), known=False, now=NOW + MINUTE
    )
    end = made.signing.certificate.not_valid_after_utc
    later = Certificates(signing=make_authority(now=end), older=published.trusted)
    assert made.signing.certificate not in renewed(later, known=False, now=end).trusted


def test_a_lost_operator_certificate_is_issued_without_waiting() -> None:
    made = first()
    again = renewed(Certificates(older=made.trusted, agents=made.agents), known=False, now=NOW)
    assert is_signed_by(again.operator.certificate, again.signing.certificate)


def test_a_foreign_certificate_is_replaced_at_once() -> None:
    made, foreign = first(), make_authority(now=NOW)
    leaf = issue(
        foreign, name="devicemount-operator", usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=NOW
    )
    have = Certificates(
        signing=made.signing, older=first().trusted, operator=leaf, agents=made.agents
    )
    again = renewed(have, known=False, now=NOW)
    assert is_signed_by(again.operator.certificate, made.signing.certificate)


@pytest.mark.parametrize("name", ["devicemount-agent", "somebody"])
def test_a_certificate_for_another_name_is_replaced(name: str) -> None:
    made = first()
    leaf = issue(made.signing, name=name, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=NOW)
    have = Certificates(signing=made.signing, operator=leaf, agents=made.agents)
    assert dns_names(renewed(have, known=True, now=NOW).operator.certificate) == [
        "devicemount-operator"
    ]


def test_a_clock_that_went_back_makes_what_is_not_valid_yet_anew() -> None:
    made = first()
    earlier = made.signing.certificate.not_valid_before_utc - MINUTE
    assert renewed(held(made), known=True, now=earlier).signing != made.signing


def test_an_authority_knows_when_it_was_made() -> None:
    assert made_at(make_authority(now=NOW).certificate) == NOW
