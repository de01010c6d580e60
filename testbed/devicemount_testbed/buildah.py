# SPDX-License-Identifier: Apache-2.0
"""Runs buildah with a store in the cache, and gives `pip` in a build what the machine's has.

Certificates and pip's configuration are mounted for the time of the build: they are in no
layer and in no file of the checkout.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from devicemount_testbed.commands import output_of, run_with_progress
from devicemount_testbed.layout import DATA, Layout

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONF = Path("/etc/pip.conf")
# how to reach an index; whatever else is configured concerns the machine, not the build
PIP_KEYS = ("extra-index-url", "index-url", "proxy", "timeout", "trusted-host")
PIP_ALIASES = {"default-timeout": "timeout"}


def private_command(script: str, *arguments: str) -> list[str]:
    """Run a script of data/ in a mount namespace of its own."""
    return ["unshare", "--mount", "--", "bash", str(DATA / script), *arguments]


def command(layout: Layout, *arguments: str) -> list[str]:
    return private_command("buildah.sh", str(layout.storage), *arguments)


def build(
    layout: Layout,
    *,
    reference: str,
    dockerfile: Path,
    context: Path,
    options: Sequence[str] = (),
) -> None:
    """Build one image into the store; unchanged layers are taken from it."""
    name = reference.rpartition("/")[2].partition(":")[0]
    with tempfile.TemporaryDirectory() as directory:
        pip_conf = Path(directory) / "pip.conf"
        pip_conf.write_text(pip_configuration(_configured_pip()))
        run_with_progress(
            command(
                layout,
                "build",
                "--isolation=chroot",
                "--layers",
                f"--volume={_host_ca_bundle()}:{CA_BUNDLE}:ro",
                f"--volume={pip_conf}:{PIP_CONF}:ro",
                *options,
                f"--tag={reference}",
                f"--file={dockerfile}",
                str(context),
            ),
            what=f"building image {reference}",
            log=layout.log_of(f"image-{name}"),
        )


def export(layout: Layout, *, reference: str, archive: Path) -> None:
    """Write an image of the store as an archive that containerd imports."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    output_of(command(layout, "push", "--quiet", reference, f"docker-archive:{draft}:{reference}"))
    draft.replace(archive)


def pip_configuration(listing: str) -> str:
    """Turn the output of `pip config list` into a pip.conf for the build."""
    lines = ["[global]", f"cert = {CA_BUNDLE}"]
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, quoted = line.partition("=")
        key = name.rpartition(".")[2]
        key = PIP_ALIASES.get(key, key)
        if key in PIP_KEYS:
            found.setdefault(key, " ".join(shlex.split(quoted)))  # :env: comes first and wins
    lines += [f"{key} = {value}" for key, value in sorted(found.items())]
    return "\n".join(lines) + "\n"


def _configured_pip() -> str:
    return output_of([sys.executable, "-m", "pip", "config", "list"])


def _host_ca_bundle() -> Path:
    return Path(os.environ.get("SSL_CERT_FILE", CA_BUNDLE))
