# SPDX-License-Identifier: Apache-2.0
"""What is shown and trusted while files of a certificate change, and what is said of bad ones."""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from chains import Link, rsa_key
from devicemount_agent_api.identity import (
    HOLD,
    SPARE,
    Identity,
    MountedIdentity,
    label,
    to_pem,
)
from devicemount_agent_api.identity_files import BadIdentity
from devicemount_operator.authority import LEAF_LIFE, Pair, issue, make_authority

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
NAME = "devicemount-agent"
NEAR = SPARE / 2

OLD, NEW = make_authority(now=NOW), make_authority(now=NOW)


def leaf(authority: Pair, *, name: str = NAME, now: datetime.datetime = NOW) -> Pair:
    return issue(authority, name=name, usage=ExtendedKeyUsageOID.SERVER_AUTH, now=now)


@dataclass
class Mounted:
    """A directory that somebody writes to, and a clock."""

    directory: Path
    now: datetime.datetime = NOW
    identity: MountedIdentity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = MountedIdentity(self.directory, clock=lambda: self.now)

    def write(self, shown: Pair, *trusted: Pair) -> None:
        (self.directory / "tls.crt").write_bytes(shown.certificate_pem)
        (self.directory / "tls.key").write_bytes(shown.key_pem)
        (self.directory / "ca.crt").write_bytes(to_pem(one.certificate for one in trusted))

    def shown(self) -> Identity:
        shown = self.identity.now_shown()
        assert shown is not None
        return shown

    def shows(self, pair: Pair) -> bool:
        return self.shown().leaf == pair.certificate

    def trusts(self) -> set[str]:
        return {label(one.subject) for one in self.shown().authorities}


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


def names(*pairs: Pair) -> set[str]:
    return {label(one.certificate.subject) for one in pairs}


def test_a_renewed_certificate_is_shown_at_once(mounted: Mounted) -> None:
    first, second = leaf(OLD), leaf(OLD)
    mounted.write(first, OLD)
    assert mounted.shows(first)
    mounted.write(second, OLD)
    assert mounted.shows(second)


def test_a_bundle_that_overlaps_is_taken_as_it_is(mounted: Mounted) -> None:
    first, second = leaf(OLD), leaf(NEW)
    mounted.write(first, OLD)
    mounted.shown()
    mounted.write(second, NEW, OLD)
    assert mounted.shows(second)
    assert mounted.trusts() == names(NEW, OLD)
    mounted.write(second, NEW)
    assert mounted.trusts() == names(NEW)


def test_an_authority_replaced_at_once_stays_trusted_and_the_former_certificate_is_shown(
    mounted: Mounted,
) -> None:
    first, second = leaf(OLD), leaf(NEW)
    mounted.write(first, OLD)
    mounted.shown()
    mounted.write(second, NEW)
    assert mounted.shows(first)
    assert mounted.trusts() == names(NEW, OLD)
    mounted.now += HOLD - NEAR
    assert mounted.shows(first)
    mounted.now += 2 * NEAR
    assert mounted.shows(second)
    assert mounted.trusts() == names(NEW, OLD)
    mounted.now = OLD.certificate.not_valid_after_utc
    assert mounted.trusts() == names(NEW)


def test_a_former_certificate_is_shown_no_longer_than_it_is_valid(mounted: Mounted) -> None:
    first = leaf(OLD, now=NOW - LEAF_LIFE + 2 * SPARE)
    second = leaf(NEW)
    mounted.write(first, OLD)
    mounted.shown()
    mounted.write(second, NEW)
    assert mounted.shows(first)
    mounted.now += SPARE
    assert mounted.shows(second)


def test_a_process_that_starts_after_the_change_knows_only_the_new(mounted: Mounted) -> None:
    second = leaf(NEW)
    mounted.write(leaf(OLD), OLD)
    mounted.shown()
    mounted.write(second, NEW)
    started = Mounted(mounted.directory)
    assert started.shows(second)
    assert started.trusts() == names(NEW)


def test_a_third_authority_within_the_time_leaves_the_first_shown(mounted: Mounted) -> None:
    third, first = make_authority(now=NOW), leaf(OLD)
    mounted.write(first, OLD)
    mounted.shown()
    mounted.write(leaf(NEW), NEW)
    mounted.shown()
    mounted.write(leaf(third), third)
    assert mounted.shows(first)
    assert mounted.trusts() == names(OLD, NEW, third)


def test_broken_files_leave_the_last_good_ones_and_are_named(mounted: Mounted) -> None:
    first = leaf(OLD)
    mounted.write(first, OLD)
    mounted.shown()
    (mounted.directory / "tls.key").write_bytes(b"nonsense")
    assert mounted.shows(first)
    assert "tls.key holds no private key" in mounted.identity.amiss(NAME)
    mounted.write(first, OLD)
    assert mounted.identity.amiss(NAME) == ""


def test_the_three_files_are_read_as_the_kubelet_wrote_them_together(mounted: Mounted) -> None:
    for name, authority in (("..1", OLD), ("..2", NEW)):
        (mounted.directory / name).mkdir()
        Mounted(mounted.directory / name).write(leaf(authority), authority)
    (mounted.directory / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        # As if read one by one while the kubelet replaces them: these are the other version's.
        (mounted.directory / name).symlink_to(f"..2/{name}")
    assert mounted.trusts() == names(OLD)
    (mounted.directory / "..next").symlink_to("..2")
    os.replace(mounted.directory / "..next", mounted.directory / "..data")  # noqa: PTH105
    assert mounted.trusts() == names(OLD, NEW)


def test_a_certificate_that_is_broken_inside_is_said_to_be() -> None:
    good = leaf(OLD)
    identity = Identity.from_pem(
        key=good.key_pem, chain=good.certificate_pem, authorities=OLD.certificate_pem
    )
    der = good.certificate.public_bytes(Encoding.DER)
    for part in (b"devicemount-ca", b"devicemount-agent"):
        broken = x509.load_der_x509_certificate(der.replace(part, b"\xff" * len(part)))
        said = identity.fault_of(broken, by_way_of=(), name=NAME, now=NOW)
        assert said.startswith(("cannot be read (", "is for no DNS name"))


def _missing(mounted: Mounted) -> None:
    (mounted.directory / "ca.crt").unlink()


def _empty(mounted: Mounted) -> None:
    (mounted.directory / "tls.crt").write_bytes(b"")


def _other_key(mounted: Mounted) -> None:
    (mounted.directory / "tls.key").write_bytes(leaf(OLD).key_pem)


def _no_authority(mounted: Mounted) -> None:
    (mounted.directory / "ca.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_missing, "ca.crt: No such file"),
        (_empty, "tls.crt holds no certificate"),
        (_other_key, "tls.key is not the key of the certificate in tls.crt"),
        (_no_authority, "ca.crt holds no certificate"),
    ],
)
def test_what_is_no_certificate_is_named(
    mounted: Mounted, broken: Callable[[Mounted], None], said: str
) -> None:
    mounted.write(leaf(OLD), OLD)
    broken(mounted)
    assert mounted.identity.now_shown() is None
    assert said in mounted.identity.amiss(NAME)
    assert str(mounted.directory) in mounted.identity.amiss(NAME)
    with pytest.raises(BadIdentity):
        Identity.from_directory(mounted.directory)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        pytest.param(leaf(OLD, now=NOW - LEAF_LIFE), "expired at 2027-01-01T00:00:00Z", id="old"),
        pytest.param(
            leaf(OLD, now=NOW + DAY), "is not valid before 2027-01-01T23:00:00Z", id="early"
        ),
        pytest.param(
            leaf(OLD, name="notebook"), "is for notebook, not for devicemount-agent", id="name"
        ),
        pytest.param(
            leaf(NEW),
            f"is signed by {label(NEW.certificate.subject)}, which is not trusted here: "
            f"{label(OLD.certificate.subject)} is",
            id="foreign",
        ),
        pytest.param(leaf(OLD), "", id="good"),
    ],
)
def test_whose_certificate_is_wrong_and_why(mounted: Mounted, shown: Pair, said: str) -> None:
    mounted.write(shown, OLD)
    amiss = mounted.identity.amiss(NAME)
    assert amiss == (f"the certificate in {mounted.directory} {said}" if said else "")


ROOT = Link.root("root", until=NOW + 9 * DAY)
ISSUING = ROOT.intermediate("issuing")
ENDED = ROOT.intermediate("ended", until=NOW - DAY)
FOREIGN = Link.root("foreign", until=NOW + 9 * DAY).intermediate("foreign-issuing")
RSA = Link.root("root", key=rsa_key(), until=NOW + 9 * DAY)
MIXED = RSA.intermediate("mixed").leaf(NAME, key=rsa_key())


@pytest.mark.parametrize(
    ("shown", "root", "said"),
    [
        pytest.param(ISSUING.leaf(NAME), ROOT, "", id="by way of an intermediate"),
        pytest.param(ISSUING.intermediate("last").leaf(NAME), ROOT, "", id="of two"),
        pytest.param(MIXED, RSA, "", id="RSA and elliptic curves in one chain"),
        pytest.param(ISSUING.leaf(NAME), ISSUING, "", id="the intermediate itself is trusted"),
        pytest.param(
            FOREIGN.leaf(NAME),
            ROOT,
            "is signed by CN=foreign-issuing, which is not trusted here: CN=root is",
            id="its own intermediate is nobody's authority",
        ),
        pytest.param(
            replace(ISSUING.leaf(NAME), above=()),
            ROOT,
            "is signed by CN=issuing, which is not trusted here: CN=root is",
            id="the intermediate is not shown",
        ),
        pytest.param(
            ENDED.leaf(NAME, until=NOW + DAY),
            ROOT,
            "is signed by CN=ended, which expired at 2026-12-31T00:00:00Z",
            id="the intermediate has ended",
        ),
        pytest.param(
            ENDED.intermediate("last", until=NOW + DAY).leaf(NAME),
            ROOT,
            "is signed by CN=ended, which expired at 2026-12-31T00:00:00Z",
            id="an intermediate above has ended",
        ),
        pytest.param(
            replace(ISSUING.leaf(NAME), above=(ENDED.certificate, ISSUING.certificate)),
            ROOT,
            "",
            id="another one has ended",
        ),
    ],
)
def test_a_chain_counts_if_it_leads_to_a_trusted_authority(
    shown: Link, root: Link, said: str
) -> None:
    identity = Identity.from_pem(
        key=shown.key_pem, chain=shown.chain_pem, authorities=root.certificate_pem
    )
    assert identity.own_fault(name=NAME, now=NOW) == said
