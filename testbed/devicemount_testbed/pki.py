# SPDX-License-Identifier: Apache-2.0
"""Certificates of one run: an authority, what it issues, and kubeconfigs that hold them.

Everything lives in the run's state directory and dies with it; keys never leave it but as
Secrets of the testbed's own cluster.
"""

import base64
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

LIFETIME = datetime.timedelta(days=365)
CLOCK_SKEW = datetime.timedelta(hours=1)
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Subject:
    """Who a certificate is for; `addresses` are IP addresses as text."""

    common_name: str
    usages: tuple[ObjectIdentifier, ...]
    organization: str | None = None
    dns_names: tuple[str, ...] = field(default=())
    addresses: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @classmethod
    def at(cls, directory: Path, name: str) -> "Pair":
        return cls(certificate=directory / f"{name}.crt", key=directory / f"{name}.key")


def make_authority(directory: Path, name: str) -> Pair:
    """Make a self-signed authority NAME.crt and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    distinguished = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject=distinguished, issuer=distinguished, public_key=key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write(Pair.at(directory, name), certificate=certificate, key=key)


def issue(authority: Pair, *, subject: Subject, name: str) -> Pair:
    """Issue NAME.crt and NAME.key beside the authority."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    issuer_key = serialization.load_pem_private_key(authority.key.read_bytes(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{authority.key} is not a key that make_authority wrote")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(
            subject=_distinguished_name(subject),
            issuer=issuer.subject,
            public_key=key.public_key(),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(subject.usages), critical=False)
    )
    if names := _alternative_names(subject):
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return _write(Pair.at(authority.key.parent, name), certificate=certificate, key=key)


def make_signing_key(directory: Path, name: str) -> Path:
    """Make a key without a certificate, for service account tokens."""
    path = directory / f"{name}.key"
    key = ec.generate_private_key(ec.SECP256R1())
    # the API server derives the public key from this form only, not from PKCS8
    write_private(path, _pem(key, serialization.PrivateFormat.TraditionalOpenSSL))
    return path


def write_kubeconfig(path: Path, *, server: str, authority: Path, client: Pair) -> None:
    """Write a kubeconfig that holds its certificates, so that the file can be copied."""
    write_private(
        path,
        f"""\
apiVersion: v1
kind: Config
clusters:
- name: testbed
  cluster:
    server: {server}
    certificate-authority-data: {_base64(authority)}
users:
- name: testbed
  user:
    client-certificate-data: {_base64(client.certificate)}
    client-key-data: {_base64(client.key)}
contexts:
- name: testbed
  context:
    cluster: testbed
    user: testbed
current-context: testbed
""".encode(),
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, also while it is being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _builder(
    *, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _distinguished_name(subject: Subject) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name)]
    if subject.organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.organization))
    return x509.Name(attributes)


def _alternative_names(subject: Subject) -> Sequence[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in subject.dns_names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in subject.addresses),
    ]


def _write(pair: Pair, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    write_private(pair.key, _pem(key, serialization.PrivateFormat.PKCS8))
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return pair


def _pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
