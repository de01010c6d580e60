# SPDX-License-Identifier: Apache-2.0
"""cert-manager's own controllers on the running testbed, for as long as somebody needs them.

They run on the machine, as an administrator, for one namespace. There is no webhook.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devicemount_testbed.build import CERT_MANAGER, CERT_MANAGER_MODULE, build_now
from devicemount_testbed.cluster import Testbed
from devicemount_testbed.commands import output_of
from devicemount_testbed.layout import COMPONENTS
from devicemount_testbed.preflight import go_program

KINDS = ("certificaterequests", "certificates", "clusterissuers", "issuers")
ESTABLISHED_S = 30
STOP_S = 10


@contextmanager
def running(testbed: Testbed, *, namespace: str) -> Iterator[None]:
    """Run them until the block ends; then their kinds are gone too, and with them every object."""
    program = build_now(testbed.layout, CERT_MANAGER)
    files = [f"--filename={path}" for path in _definitions()]
    # The definitions are too large for the annotation of a client-side apply.
    testbed.kubectl("apply", "--server-side", *files)
    try:
        names = [f"crd/{kind}.cert-manager.io" for kind in KINDS]
        testbed.kubectl(
            "wait", "--for=condition=Established", f"--timeout={ESTABLISHED_S}s", *names
        )
        with _process(testbed, program, namespace=namespace):
            yield
    finally:
        testbed.kubectl("delete", "--ignore-not-found", *files)


@contextmanager
def _process(testbed: Testbed, program: Path, *, namespace: str) -> Iterator[None]:
    log = testbed.layout.log_of("cert-manager")
    argv = [str(program), f"-kubeconfig={testbed.kubeconfig}", f"-namespace={namespace}"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=STOP_S)


def _definitions() -> list[Path]:
    """Return the files of the custom resource definitions: the module brings them."""
    argv = [go_program(), "-C", str(COMPONENTS / CERT_MANAGER.module), "list", "-m"]
    module = Path(output_of([*argv, "-f", "{{.Dir}}", CERT_MANAGER_MODULE]).strip())
    return [module / "deploy" / "crds" / f"cert-manager.io_{kind}.yaml" for kind in KINDS]
