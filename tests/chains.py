# SPDX-License-Identifier: Apache-2.0
"""Certificates by way of intermediate authorities, of keys of either kind, as a site's own are."""

import datetime
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from devicemount_agent_api.identity import to_pem

DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def ec_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key() -> Key:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class Link:
    """A certificate, its key, and those between it and the root."""

    certificate: x509.Certificate
    key: Key
    above: tuple[x509.Certificate, ...] = ()

    @classmethod
    def root(cls, name: str, *, key: Key | None = None, until: datetime.datetime) -> Self:
        mine = key or ec_key()
        return cls(_sign(name, mine, by=None, until=until, dns_names=()), mine)

    def intermediate(
        self, name: str, *, key: Key | None = None, until: datetime.datetime | None = None
    ) -> "Link":
        return self._below(name, key=key or ec_key(), until=until, dns_names=())

    def leaf(
        self, name: str, *, key: Key | None = None, until: datetime.datetime | None = None
    ) -> "Link":
        return self._below(name, key=key or ec_key(), until=until, dns_names=(name,))

    def _below(
        self, name: str, *, key: Key, until: datetime.datetime | None, dns_names: tuple[str, ...]
    ) -> "Link":
        ends = until or self.certificate.not_valid_after_utc
        signed = _sign(name, key, by=self, until=ends, dns_names=dns_names)
        is_root = self.certificate.issuer == self.certificate.subject
        above = () if is_root else (self.certificate, *self.above)
        return Link(signed, key, above)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone."""
        return to_pem([self.certificate])

    @property
    def chain_pem(self) -> bytes:
        """The certificate and its intermediates, as tls.crt has them."""
        return to_pem([self.certificate, *self.above])


def _sign(
    name: str, key: Key, *, by: Link | None, until: datetime.datetime, dns_names: tuple[str, ...]
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(until - DAY, datetime.datetime.now(datetime.UTC) - DAY))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=not dns_names, path_length=None), critical=True)
    )
    if dns_names:
        names = x509.SubjectAlternativeName([x509.DNSName(one) for one in dns_names])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(by.key if by else key, hashes.SHA256())
