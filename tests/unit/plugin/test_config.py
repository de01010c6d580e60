# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it says is taken exactly, what it gets wrong is explained."""

from pathlib import Path

import pytest

from devicemount_plugin.config import MAX_REPLICAS, ConfigError, read_config

GOOD = """
resources:
- name: example.com/disk
  nodes: {glob: "/dev/disk[0-3]"}
- name: example.com/fuse
  nodes: {paths: [/dev/fuse]}
  replicas: 4
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "plugin.yaml"
    path.write_text(text)
    return path


def complaint(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(written(directory, text))
    return str(caught.value).replace(f"{directory}/", "")


def one(*, name: str = "example.com/a", nodes: str = "{glob: /dev/a*}", more: str = "") -> str:
    return f"resources: [{{name: '{name}', nodes: {nodes}{more}}}]"


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    disk, fuse = read_config(written(tmp_path, GOOD)).resources
    assert (disk.name, disk.nodes.glob, disk.replicas) == ("example.com/disk", "/dev/disk[0-3]", 1)
    assert (fuse.name, fuse.nodes.paths, fuse.replicas) == ("example.com/fuse", ["/dev/fuse"], 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            one(more=", replica: 2"),
            "plugin.yaml: resources.0.replica: is not known: remove it or correct its spelling",
            id="an unknown key is refused where it stands",
        ),
        pytest.param(
            "resourcess: []\n",
            "plugin.yaml: resources: Field required\n"
            "plugin.yaml: resourcess: is not known: remove it or correct its spelling",
            id="everything that is wrong is said at once",
        ),
        pytest.param(
            one(nodes="{glob: '/dev/a*', paths: [/dev/b]}"),
            "plugin.yaml: resources.0.nodes: give either 'glob' or 'paths'",
            id="glob and paths exclude each other",
        ),
        pytest.param(
            one(nodes="{}"),
            "plugin.yaml: resources.0.nodes: give either 'glob' or 'paths'",
            id="one of glob and paths is needed",
        ),
        pytest.param(
            one(nodes="{glob: loop*}"),
            "plugin.yaml: resources.0.nodes.glob: must begin with /dev/, as on the node",
            id="a pattern outside /dev is refused",
        ),
        pytest.param(
            one(nodes="{paths: [/dev/../etc/shadow]}"),
            "plugin.yaml: resources.0.nodes.paths.0: "
            "must not contain '//', '.' or '..' and must not end with '/'",
            id="a path does not climb out of /dev",
        ),
        pytest.param(
            one(name="gadget"),
            "plugin.yaml: resources.0.name: "
            "must look like domain/name, for example example.com/gadget",
            id="a resource has a domain",
        ),
        pytest.param(
            one(name="device.kubernetes.io/gadget"),
            "plugin.yaml: resources.0.name: kubernetes.io is reserved: take a domain of your own",
            id="the project's own domain is reserved",
        ),
        pytest.param(
            one(name="requests.example.com/gadget"),
            "plugin.yaml: resources.0.name: must not begin with 'requests.', which quotas use",
            id="a name that quotas would misread is refused",
        ),
        pytest.param(
            one(more=", replicas: 0"),
            "plugin.yaml: resources.0.replicas: Input should be greater than or equal to 1",
            id="no replicas are refused",
        ),
        pytest.param(
            one(more=", replicas: '4'"),
            "plugin.yaml: resources.0.replicas: Input should be a valid integer",
            id="a number is not a string",
        ),
        pytest.param(
            one(more=f", replicas: {MAX_REPLICAS + 1}"),
            "plugin.yaml: resources.0.replicas: Input should be less than or equal to 256",
            id="replicas are bounded",
        ),
        pytest.param(
            GOOD.replace("example.com/fuse", "example.com/disk"),
            "plugin.yaml: the file: example.com/disk is there twice: merge the entries",
            id="a resource is there once",
        ),
        pytest.param(
            "",
            "plugin.yaml: the file: Input should be a valid dictionary or instance of Config",
            id="an empty file is refused",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert complaint(tmp_path, text) == expected


def test_what_is_no_yaml_is_said(tmp_path: Path) -> None:
    assert complaint(tmp_path, "resources: [").startswith("plugin.yaml is no YAML: ")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        read_config(tmp_path / "plugin.yaml")
