# SPDX-License-Identifier: Apache-2.0
"""The env file says the same to a shell and to who reads lines."""

import subprocess

import pytest

from devicemount_agent.errors import NotAllowed
from devicemount_agent.graft.env_file import LIMIT_BYTES, env_name, env_text, ready_name
from devicemount_agent.model import EnvVar

VALUES = [
    "GPU-8f3c0e1a,GPU-77",
    "/usr/local/lib:/opt/lib",
    "",
    "two words",
    "it's",
    '$(touch /tmp/x) `id` "quoted" \\',
    "two\nlines",
    "a=b #c",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_shell_reads_exactly_the_value(value: str) -> None:
    script = env_text([EnvVar("VALUE", value)]) + 'printf %s "$VALUE"'
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == value


def test_a_plain_value_stands_as_it_is() -> None:
    variables = [
        EnvVar("NVIDIA_VISIBLE_DEVICES", "GPU-1,GPU-2"),
        EnvVar("LD_LIBRARY_PATH", "/a:/b"),
    ]
    assert env_text(variables) == "NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2\nLD_LIBRARY_PATH=/a:/b\n"


def test_a_variable_counts_once() -> None:
    assert env_text([EnvVar("A", "1"), EnvVar("A", "1")]) == "A=1\n"


@pytest.mark.parametrize("name", ["", "A B", "A;id", "1A", "A-B", "A=B", "A\nB", "A.B"])
def test_what_a_shell_would_not_take_for_a_variable_is_refused(name: str) -> None:
    with pytest.raises(NotAllowed, match="no environment variable"):
        env_text([EnvVar(name, "x")])


def test_it_is_bounded() -> None:
    with pytest.raises(NotAllowed, match="longer than"):
        env_text([EnvVar("A", "x" * LIMIT_BYTES)])


def test_a_name_that_is_too_long_for_a_file_is_cut_and_stays_its_own() -> None:
    one, other = "a" * 253, "a" * 252 + "b"
    assert max(len(env_name(one)), len(ready_name(one))) <= 255
    assert env_name(one) != env_name(other)
    assert env_name("notebook-gpu") == "notebook-gpu.env"
