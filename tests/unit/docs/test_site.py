# SPDX-License-Identifier: Apache-2.0
"""The documents hold together: links, languages, reasons, the same commands in both languages."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.pages import DOCS, blocks, languages
from devicemount_agent.profiles.profile import Profile
from devicemount_operator.reasons import Reason
from devicemount_plugin.config import Resource

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
QUICK_STARTS = sorted(DOCS.glob("quick-starts/*.md"))
NOT_ASKED_ABOUT = {Reason.MOUNTED, Reason.SUSPENDED}  # no trouble

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^(?:kubectl|ctr|docker|make|for|rm|cmctl|crictl|systemctl) ", re.MULTILINE)
_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return the page without its blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as mkdocs and the forges make them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(prose(page))
    }


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, anchor) of the page's links within the repository."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        assert not anchor or anchor in anchors(target), f"{path} has no heading {anchor}"


@pytest.mark.parametrize("page", QUICK_STARTS, ids=lambda page: page.name)
def test_a_quick_start_has_no_commands_that_no_test_could_see(page: Path) -> None:
    assert languages(page) <= {"shell", "yaml", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_where_a_test_runs_them_or_says_why_not(page: Path) -> None:
    elsewhere = languages(page) - {"shell"} | {""}
    others = [block for name in elsewhere for block in blocks(page, language=name)]
    assert not [str(block) for block in others if _COMMAND.search(block.script)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_fails_is_seen_to_fail(page: Path) -> None:
    hidden = [block for block in blocks(page) if not block.not_run and "|| echo" in block.script]
    assert not [str(block) for block in hidden]


def test_both_languages_have_the_same_commands() -> None:
    one, other = (
        [(block.script, bool(block.not_run)) for block in blocks(DOCS / "quick-starts" / name)]
        for name in ("moffett-spu.md", "moffett-spu.zh.md")
    )
    assert one == other


def test_every_reason_is_on_the_page_of_troubleshooting() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    missing = {
        reason.value for reason in set(Reason) - NOT_ASKED_ABOUT if f"`{reason.value}`" not in page
    }
    assert not missing


def test_every_field_of_a_profile_and_no_other_is_explained() -> None:
    known = {field.encode_name for field in msgspec.structs.fields(Profile)}
    page = (DOCS / "profiles.md").read_text(encoding="utf-8").partition("## Fields")[2]
    fields = page.partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in fields.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == known


def test_every_key_of_the_plugins_configuration_and_no_other_is_explained() -> None:
    keys = {field.alias for field in Resource.model_fields.values()} - {"name"}
    page = (DOCS / "quick-starts/own-plugin.md").read_text(encoding="utf-8")
    first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)", " ".join(first_cells))) == keys


def test_a_block_is_left_out_only_where_the_line_before_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "*Not run in our tests: needs a card.*\n\n```shell\na\n```\n\n```shell\nb\n```\n"
        "<!-- not run: needs a node -->\n```shell\nc\n```\n```text\nd\n```\n"
    )
    assert [(b.line, b.script, b.not_run) for b in blocks(page)] == [
        (4, "a\n", "needs a card."),
        (8, "b\n", ""),
        (12, "c\n", "needs a node"),
    ]
