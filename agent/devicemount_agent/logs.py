# SPDX-License-Identifier: Apache-2.0
"""One line per state change: `<past tense> key=value ...`, so that people read it and machines
split it.
"""

import logging


def line(what: str, **facts: object) -> str:
    """Return the line; values that hold spaces or quotes are quoted."""
    return " ".join((what, *(f"{key}={_quoted(str(fact))}" for key, fact in facts.items())))


def plain(text: str, *, limit: int) -> str:
    """Return a bounded line in which nothing but printable characters stands.

    For what becomes part of a status: paths and names of others are in it.
    """
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 3]}..."


def configure() -> None:
    """Write everything from INFO on to standard error, with milliseconds."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def _quoted(value: str) -> str:
    plain = value.isprintable() and not any(c in value for c in " =\"'")
    return value if plain and value else repr(value)
