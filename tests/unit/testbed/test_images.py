# SPDX-License-Identifier: Apache-2.0
"""When an image is stale, what a build may know of the machine, what a deployment restarts."""

import json
import tarfile
from pathlib import Path

import pytest

from devicemount_testbed.archives import Directory, File, Link, copy_archive, write_archive
from devicemount_testbed.buildah import pip_configuration
from devicemount_testbed.deploy import STAMP, stamp
from devicemount_testbed.errors import NoRepository, UnreadableDockerfile
from devicemount_testbed.images import copied_sources, find_repository, hash_inputs

DOCKERFILE = """\
FROM base AS one
COPY requirements/agent.txt ./
COPY --chown=0:0 agent/a \\
     agent/b /opt/
FROM base
COPY --from=one /opt /opt
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM base\nCOPY part /part\n")
    (tmp_path / "part").mkdir()
    (tmp_path / "part/code.py").write_text("1")
    return tmp_path


def test_sources_of_all_stages_are_found() -> None:
    assert copied_sources(DOCKERFILE) == ("agent/a", "agent/b", "requirements/agent.txt")


@pytest.mark.parametrize("line", ['COPY ["a", "b"]', "COPY *.py /x", "COPY $A /x"])
def test_a_copy_that_cannot_be_followed_is_refused(line: str) -> None:
    with pytest.raises(UnreadableDockerfile):
        copied_sources(line)


def test_an_image_is_stale_when_a_copied_file_changed(checkout: Path) -> None:
    before = hash_inputs(checkout, dockerfile="Dockerfile")
    (checkout / "part/code.py").write_text("2")
    assert hash_inputs(checkout, dockerfile="Dockerfile") != before


def test_an_image_is_not_stale_for_files_it_does_not_copy(checkout: Path) -> None:
    before = hash_inputs(checkout, dockerfile="Dockerfile")
    (checkout / "other.py").write_text("2")
    (checkout / "part/__pycache__").mkdir()
    (checkout / "part/__pycache__/code.pyc").write_text("2")
    assert hash_inputs(checkout, dockerfile="Dockerfile") == before


def test_without_a_checkout_there_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(NoRepository):
        find_repository(tmp_path)


def test_the_build_reaches_the_index_as_the_machine_does() -> None:
    listing = (
        ":env:.default-timeout='180'\n"
        ":env:.find-links='/opt/wheels'\n"
        "global.cert='/home/me/ca.pem'\n"
        "global.index-url='https://mirror.example/simple'\n"
        "global.timeout='15'\n"
    )
    assert pip_configuration(listing) == (
        "[global]\n"
        "cert = /etc/ssl/certs/ca-certificates.crt\n"
        "index-url = https://mirror.example/simple\n"
        "timeout = 180\n"
    )


def test_the_same_content_gives_the_same_archive(tmp_path: Path) -> None:
    entries = (File("bin/a", content=b"x"), Link("bin/b", target="a"), Directory("tmp"))
    for name in ("1.tar", "2.tar"):
        write_archive(tmp_path / name, reference="localhost/x:1", entries=entries, command=["/a"])
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == ["localhost/x:1"]


def workload(image: str) -> dict[str, object]:
    return {"spec": {"template": {"spec": {"containers": [{"image": image}]}}}}


def stamped(inputs: dict[str, str]) -> str:
    made = workload("localhost/a:dev")
    stamp(made, inputs)
    annotations: dict[str, str] = made["spec"]["template"]["metadata"]["annotations"]  # type: ignore[index]
    return annotations[STAMP]


def test_a_workload_restarts_for_its_own_image_only() -> None:
    inputs = {"localhost/a:dev": "1", "localhost/b:dev": "1"}
    before = stamped(inputs)
    assert stamped({**inputs, "localhost/b:dev": "2"}) == before
    assert stamped({**inputs, "localhost/a:dev": "2"}) != before


def test_a_released_archive_has_its_own_name_only_and_the_same_content(tmp_path: Path) -> None:
    built, released = tmp_path / "built.tar", tmp_path / "dist/released.tar"
    entries = [File(path="hold", content=b"program")]
    write_archive(built, reference="localhost/hold:dev", entries=entries, command=["/hold"])
    with tarfile.open(built, "a") as archive:  # as others write it besides
        archive.addfile(tarfile.TarInfo("repositories"))
    copy_archive(built, released, reference="localhost/hold:0.1.0")
    with tarfile.open(built) as old, tarfile.open(released) as new:
        assert {*old.getnames()} - {*new.getnames()} == {"repositories"}
        (before,), (after,) = (json.load(a.extractfile("manifest.json") or a) for a in (old, new))
        assert after == {**before, "RepoTags": ["localhost/hold:0.1.0"]}
        for layer in after["Layers"]:
            assert (new.extractfile(layer) or new).read() == (old.extractfile(layer) or old).read()
