# SPDX-License-Identifier: Apache-2.0
"""Certificates of a run: who they are for, who vouches for them, who may read their keys."""

import stat
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from devicemount_testbed import pki

SUBJECT = pki.Subject(
    common_name="system:node:node1",
    organization="system:nodes",
    usages=(pki.SERVER, pki.CLIENT),
    dns_names=("node1",),
    addresses=("192.168.77.11",),
)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_an_issued_certificate_names_its_subject(tmp_path: Path) -> None:
    authority = pki.make_authority(tmp_path, "ca")
    issued = read(pki.issue(authority, subject=SUBJECT, name="node1").certificate)
    (common_name,) = issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    (organization,) = issued.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert (common_name.value, organization.value) == ("system:node:node1", "system:nodes")
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node1"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.168.77.11"]
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {pki.SERVER, pki.CLIENT}


def test_its_authority_vouches_for_it_and_another_does_not(tmp_path: Path) -> None:
    authority = pki.make_authority(tmp_path, "ca")
    issued = read(pki.issue(authority, subject=SUBJECT, name="node1").certificate)
    issued.verify_directly_issued_by(read(authority.certificate))
    other = pki.make_authority(tmp_path, "other")
    try:
        issued.verify_directly_issued_by(read(other.certificate))
    except ValueError:
        return
    raise AssertionError("a foreign authority vouched for the certificate")


def test_keys_and_kubeconfigs_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = pki.make_authority(tmp_path, "ca")
    client = pki.issue(authority, subject=SUBJECT, name="node1")
    kubeconfig = tmp_path / "kubeconfig"
    pki.write_kubeconfig(
        kubeconfig, server="https://127.0.0.1:1", authority=authority.certificate, client=client
    )
    signing = pki.make_signing_key(tmp_path, "service-accounts")
    for path in (authority.key, client.key, kubeconfig, signing):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_token_key_has_the_form_that_the_api_server_reads(tmp_path: Path) -> None:
    key = pki.make_signing_key(tmp_path, "service-accounts").read_text()
    assert key.startswith("-----BEGIN EC PRIVATE KEY-----")
