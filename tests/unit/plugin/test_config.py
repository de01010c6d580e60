# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what it says is taken exactly, what it gets wrong is explained."""

from pathlib import Path

import pytest

from devicemount_plugin.config import MAX_REPLICAS, ConfigError, Pci, Usb, read_config

SHIPPED = Path(__file__).parents[3] / "manifests/plugin-configs"
GOOD = """
resources:
- name: example.com/disk
  nodes: {glob: "/dev/disk[0-3]"}
- name: example.com/fuse
  nodes: {paths: [/dev/fuse]}
  replicas: 4
"""
FULL = """
resources:
- name: example.com/card
  pci: {vendor: "1f36", device: "7030", driver: spu, nodes: ["/dev/spu*"]}
  expected: true
  control: [/dev/spuctl]
  access: wr
  containerPath: /dev/cards/{name}
  mounts:
  - {hostPath: /usr/local/sola, containerPath: /usr/local/sola}
  - {hostPath: /var/run/spu, containerPath: /run/spu, readOnly: false}
  env: {SPU: "1"}
  health: [{attribute: state, healthy: [ok]}]
- name: example.com/stick
  usb: {vendor: "0403", product: "6001", serial: A50285BI}
- name: example.com/pair
  groups: {first: [/dev/a0, /dev/b0]}
  cdi: example.com/pair={id}
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "plugin.yaml"
    path.write_text(text)
    return path


def complaint(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(written(directory, text))
    return str(caught.value).replace(f"{directory}/", "")


def one(
    *, name: str = "example.com/a", source: str = "nodes: {glob: /dev/a*}", more: str = ""
) -> str:
    return f"resources: [{{name: '{name}', {source}{more}}}]"


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    disk, fuse = read_config(written(tmp_path, GOOD)).resources
    assert disk.nodes is not None
    assert fuse.nodes is not None
    assert (disk.name, disk.nodes.glob, disk.replicas) == ("example.com/disk", "/dev/disk[0-3]", 1)
    assert (fuse.name, fuse.nodes.paths, fuse.replicas) == ("example.com/fuse", ["/dev/fuse"], 4)


def test_every_field_is_read(tmp_path: Path) -> None:
    card, stick, pair = read_config(written(tmp_path, FULL)).resources
    assert card.pci == Pci(vendor="1f36", device="7030", driver="spu", nodes=["/dev/spu*"])
    assert (card.expected, card.control, card.access) == (True, ["/dev/spuctl"], "rw")
    assert (card.container_path, card.env) == ("/dev/cards/{name}", {"SPU": "1"})
    assert [mount.read_only for mount in card.mounts] == [True, False]
    assert card.mounts[1].container_path == "/run/spu"
    assert [(check.attribute, check.healthy) for check in card.health] == [("state", ["ok"])]
    assert stick.usb == Usb(vendor="0403", product="6001", serial="A50285BI")
    assert (pair.groups, pair.cdi) == ({"first": ["/dev/a0", "/dev/b0"]}, "example.com/pair={id}")


HEXADECIMAL = 'must be four hexadecimal digits in lower case and quotes, as "1f36"'


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        pytest.param(
            one(source="nodes: {glob: '/dev/**/a'}"),
            "nodes.glob",
            "must not contain '**': name the directory",
            id="a pattern for the whole of /dev",
        ),
        pytest.param(
            one(source="pci: {vendor: 1f36, device: 7030}"),
            "pci.device",
            HEXADECIMAL,
            id="a number that YAML reads as decimal",
        ),
        pytest.param(
            one(source="usb: {vendor: 0403, product: '6001'}"),
            "usb.vendor",
            HEXADECIMAL,
            id="a number that YAML reads as octal",
        ),
        pytest.param(
            one(source="pci: {vendor: '0x1F36'}"), "pci.vendor", HEXADECIMAL, id="another spelling"
        ),
        pytest.param(
            one(more=", pci: {vendor: '1f36'}"),
            "",
            "give one of 'nodes', 'groups', 'pci' and 'usb'",
            id="two sources",
        ),
        pytest.param(
            one(source="replicas: 2"),
            "",
            "give one of 'nodes', 'groups', 'pci' and 'usb'",
            id="no source",
        ),
        pytest.param(
            one(source="groups: {'a::1': [/dev/a]}"),
            "groups.a::1.[key]",
            "String should match pattern '^[A-Za-z0-9]([-A-Za-z0-9_.]{0,30}[A-Za-z0-9])?$'",
            id="a group's name is an id",
        ),
        pytest.param(
            one(source="groups: {a: [/dev/a, /dev/all], b: [/dev/b, /dev/all]}"),
            "",
            "/dev/all is in several groups, so that two containers would get it: name what all"
            " devices share under 'control'",
            id="a node in two groups",
        ),
        pytest.param(
            one(source="groups: {}"),
            "groups",
            "Dictionary should have at least 1 item after validation, not 0",
            id="no group",
        ),
        pytest.param(
            one(source="groups: {a: [/dev/a0, /dev/a1]}, containerPath: /dev/gadget"),
            "",
            "several nodes of group a would be /dev/gadget in the container:"
            " put {name} into 'containerPath', or leave it out",
            id="a group whose nodes would be at one path",
        ),
        pytest.param(
            one(source="groups: {a: [/dev/a/0]}, control: [/dev/0], containerPath: '/dev/{name}'"),
            "",
            "several nodes of group a would be /dev/0 in the container:"
            " put {name} into 'containerPath', or leave it out",
            id="a group with a node where a control node is",
        ),
        pytest.param(
            one(more=", env: {'': a}"),
            "env..[key]",
            "must be the name of a variable: not empty and without '='",
            id="a variable without a name",
        ),
        pytest.param(
            one(more=", env: {A=B: a}"),
            "env.A=B.[key]",
            "must be the name of a variable: not empty and without '='",
            id="a variable that sets another",
        ),
        pytest.param(
            one(more=", access: rx"),
            "access",
            "must be made of r (read), w (write) and m (mknod), each once",
            id="an unknown access",
        ),
        pytest.param(
            one(more=", access: ''"),
            "access",
            "must be made of r (read), w (write) and m (mknod), each once",
            id="no access",
        ),
        pytest.param(
            one(more=", containerPath: '/dev/{index}'"),
            "containerPath",
            "{name}, the node's own name, is the only placeholder",
            id="an unknown placeholder",
        ),
        pytest.param(
            one(more=", containerPath: /etc/passwd"),
            "containerPath",
            "must begin with /dev/, as on the node",
            id="a device outside /dev",
        ),
        pytest.param(
            one(more=", mounts: [{hostPath: /a/../b, containerPath: c}]"),
            "mounts.0.hostPath",
            "must be absolute and must not contain '//', '.' or '..'",
            id="a mount that climbs",
        ),
        pytest.param(
            one(more=", env: {A: 1}"),
            "env.A",
            "Input should be a valid string",
            id="a number as text",
        ),
        pytest.param(
            one(more=", cdi: example.com/gadget=all"),
            "cdi",
            "must look like vendor/class={id}, for example example.com/gadget={id}",
            id="one CDI name for all devices",
        ),
        pytest.param(
            one(more=", cdi: 'example.com/gadget={id}', access: r"),
            "",
            "with 'cdi' the CDI specification says path and access: remove them",
            id="access that CDI would ignore",
        ),
        pytest.param(
            one(more=", health: [{attribute: ../state, healthy: [ok]}]"),
            "health.0.attribute",
            "must be a path below the device's directory in /sys, without '..'",
            id="an attribute that climbs",
        ),
    ],
)
def test_each_field_is_checked(tmp_path: Path, text: str, place: str, advice: str) -> None:
    where = f"resources.0.{place}".rstrip(".")
    assert complaint(tmp_path, text).splitlines()[0] == f"plugin.yaml: {where}: {advice}"


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
            one(source="nodes: {glob: '/dev/a*', paths: [/dev/b]}"),
            "plugin.yaml: resources.0.nodes: give either 'glob' or 'paths'",
            id="glob and paths exclude each other",
        ),
        pytest.param(
            one(source="nodes: {}"),
            "plugin.yaml: resources.0.nodes: give either 'glob' or 'paths'",
            id="one of glob and paths is needed",
        ),
        pytest.param(
            one(source="nodes: {glob: loop*}"),
            "plugin.yaml: resources.0.nodes.glob: must begin with /dev/, as on the node",
            id="a pattern outside /dev is refused",
        ),
        pytest.param(
            one(source="nodes: {paths: [/dev/../etc/shadow]}"),
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


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        pytest.param(f"{GOOD}  replicas: 2\n", "replicas", 8, id="a field of a resource"),
        pytest.param("resources: []\nresources: []\n", "resources", 2, id="at the top"),
        pytest.param(
            one(source="groups: {a: [/dev/a], 'a': [/dev/b]}"), "a", 1, id="quoted and not quoted"
        ),
    ],
)
def test_a_key_that_is_there_twice_is_refused(
    tmp_path: Path, text: str, key: str, line: int
) -> None:
    said = complaint(tmp_path, text)
    assert said.startswith(f"plugin.yaml is no YAML: {key!r} is there twice: merge the two\n")
    assert f"line {line}, column " in said


def test_aliases_do_not_matter(tmp_path: Path) -> None:
    text = "resources:\n- &a\n  name: example.com/a\n  nodes: &n {glob: '/dev/a*'}\n- *a\n"
    assert complaint(tmp_path, text) == (
        "plugin.yaml: the file: example.com/a is there twice: merge the entries"
    )
    assert complaint(tmp_path, "&a [*a]").startswith("plugin.yaml: the file: Input should be")


def test_a_date_that_is_none_is_said(tmp_path: Path) -> None:
    assert complaint(tmp_path, "resources: 2026-99-99") == (
        "plugin.yaml is no YAML: month must be in 1..12"
    )


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        read_config(tmp_path / "plugin.yaml")


def test_a_directory_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(one(name="example.com/b"))
    (tmp_path / "a.yaml").write_text(one(name="example.com/a"))
    (tmp_path / "README").write_text("resources: 7")
    names = [resource.name for resource in read_config(tmp_path).resources]
    assert names == ["example.com/a", "example.com/b"]


def test_a_directory_is_refused_as_its_files_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \*\.yaml$"):
        read_config(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(one(name="example.com/a"))
    with pytest.raises(ConfigError, match=r": the file: example.com/a is there twice"):
        read_config(tmp_path)
    (tmp_path / "b.yaml").write_text(one(name="b"))
    with pytest.raises(ConfigError, match=r"/b\.yaml: resources\.0\.name: must look like"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", [folder.name for folder in sorted(SHIPPED.iterdir())])
def test_what_is_shipped_is_accepted(name: str) -> None:
    assert read_config(SHIPPED / name / f"{name}.yaml").resources
