# SPDX-License-Identifier: Apache-2.0
"""Certificates of both sides in directories, as somebody's Secrets would be mounted."""

import datetime
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from devicemount_agent_api.identity import to_pem, utc_now
from devicemount_operator.authority import Pair, issue, make_authority

USAGES = {
    "operator": ExtendedKeyUsageOID.CLIENT_AUTH,
    "agent": ExtendedKeyUsageOID.SERVER_AUTH,
}


class Directories:
    """Directories `operator` and `agent`, with what one authority has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = make_authority(now=utc_now())
        for side in USAGES:
            (directory / side).mkdir()
            self.write(side)

    def write(
        self,
        side: str,
        *,
        signed_by: Pair | None = None,
        trusted: Pair | None = None,
        name: str = "",
        now: datetime.datetime | None = None,
    ) -> None:
        """Write one side's three files anew."""
        signing = signed_by or self.authority
        name = name or f"devicemount-{side}"
        leaf = issue(signing, name=name, usage=USAGES[side], now=now or utc_now())
        for file, content in (
            ("tls.crt", leaf.certificate_pem),
            ("tls.key", leaf.key_pem),
            ("ca.crt", to_pem([(trusted or signing).certificate])),
        ):
            (self.directory / side / file).write_bytes(content)
