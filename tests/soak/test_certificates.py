# SPDX-License-Identifier: Apache-2.0
"""Certificates of ten minutes, and an authority that is renewed too, under mounts.

The kubelets bring the changed Secrets by themselves. cert-manager's webhook, which demands an hour
and more, is not part of the testbed. SOAK_CERTIFICATES_MINUTES says for how long.
"""

import logging
import os
import time
from pathlib import Path

from cryptography import x509

from cluster.test_certificates import (
    AGENT,
    ROOT,
    WITH_CERT_MANAGER,
    Cluster,
    by_cert_manager,
    cluster,
    mounting_all_the_time,
)
from cluster.world import World
from devicemount_testbed.waiting import wait_until

MINUTES = float(os.environ.get("SOAK_CERTIFICATES_MINUTES", "25"))
# Three renewals in each life of an authority; the first after its renewal is held back, and mostly
# never shown, because the second is there first.
CHANGES = MINUTES // 6
POLL_S = 10.0
PAUSE_S = 1.0
SHORT_LIVED = f"""
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [devicemount/{WITH_CERT_MANAGER}]
patches:
- target: {{kind: Certificate, name: devicemount-(operator|agent)}}
  patch: |-
    - {{op: replace, path: /spec/duration, value: 10m}}
    - {{op: replace, path: /spec/renewBefore, value: 6m}}
- target: {{kind: Certificate, name: devicemount-ca}}
  patch: |-
    - {{op: replace, path: /spec/duration, value: 24m}}
    - {{op: replace, path: /spec/renewBefore, value: 12m}}
"""

__all__ = ["cluster"]
log = logging.getLogger(__name__)


def test_certificates_of_ten_minutes_fail_no_mount(
    world: World, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "kustomization.yaml").write_text(SHORT_LIVED)
    (tmp_path / "devicemount").symlink_to(ROOT)
    with by_cert_manager(cluster, overlay=tmp_path):
        processes = cluster.processes()
        shown: list[set[x509.Certificate]] = [set() for _ in cluster.served()]  # by each agent
        trusted = set[x509.Certificate]()
        until = time.monotonic() + 60 * MINUTES

        def is_time_up() -> bool:
            trusted.update(cluster.trusted(AGENT))
            for seen, now in zip(shown, cluster.served(), strict=True):
                seen.add(now)
            return time.monotonic() >= until

        with mounting_all_the_time(world, pause_s=PAUSE_S) as took:
            wait_until(is_time_up, what="the time is up", seconds=60 * MINUTES + 60, poll_s=POLL_S)
        assert cluster.processes() == processes
    changes = [len(seen) - 1 for seen in shown]
    log.warning(
        "%.0f minutes: mounts=%d slowest_s=%.1f certificates shown=%s authorities=%d",
        MINUTES,
        len(took),
        max(took),
        changes,
        len(trusted),
    )
    assert min(changes) >= CHANGES
    assert len(trusted) > MINUTES // 15
