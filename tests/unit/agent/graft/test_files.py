# SPDX-License-Identifier: Apache-2.0
"""The files that containers are shown are the agent's, whatever a container makes of the directory:
with CAP_SYS_ADMIN it can write there.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devicemount_agent.graft.files import Files
from devicemount_agent.model import ContainerID

CONTAINER = ContainerID("c" * 64)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shown(files: Files) -> dict[str, str]:
    return {path.name: path.read_text() for path in files.shown(CONTAINER).iterdir()}


def test_exactly_what_is_wanted_is_shown(files: Files) -> None:
    files.show(CONTAINER, {"a.env": "A=1\n", "a.ready": ""})
    files.show(CONTAINER, {"a.env": "A=2\n"})
    assert shown(files) == {"a.env": "A=2\n"}
    assert files.names(CONTAINER) == {"a.env"}


def test_a_pipe_in_a_files_place_is_replaced_unopened(files: Files) -> None:
    files.show(CONTAINER, {"a.env": "A=1\n"})
    (files.shown(CONTAINER) / "a.env").unlink()
    os.mkfifo(files.shown(CONTAINER) / "a.env")
    files.show(CONTAINER, {"a.env": "A=2\n"})
    assert shown(files) == {"a.env": "A=2\n"}


def test_a_link_in_a_files_place_leads_nowhere(files: Files, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("the node's")
    files.make(CONTAINER)
    (files.shown(CONTAINER) / "a.env").symlink_to(tmp_path / "nodes")
    files.show(CONTAINER, {"a.env": "A=1\n"})
    assert (tmp_path / "nodes").read_text() == "the node's"
    assert shown(files) == {"a.env": "A=1\n"}


def test_what_a_container_puts_there_is_not_taken_for_ours(files: Files) -> None:
    files.make(CONTAINER)
    (files.shown(CONTAINER) / "a.ready").touch()
    assert files.names(CONTAINER) == frozenset()


def test_another_process_of_ours_says_all_anew(files: Files) -> None:
    files.show(CONTAINER, {"a.ready": ""})
    (files.shown(CONTAINER) / "a.ready").unlink()  # a crash between two steps
    Files(files.root).show(CONTAINER, {"a.ready": ""})
    assert shown(files) == {"a.ready": ""}


def test_texts_that_are_made_at_once_keep_their_content(files: Files) -> None:
    texts = [f"text {number}\n" * 50 for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda text: files.text(CONTAINER, text), texts))
    assert [path.read_text() for path in made] == texts
