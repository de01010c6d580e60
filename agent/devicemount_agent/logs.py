# SPDX-License-Identifier: Apache-2.0
"""One line per state change: `<past tense> key=value ...`, so that people read it and machines
split it.
"""

import logging


def line(what: str, **facts: object) -> str:
    """Return the line; values that hold spaces or quotes are quoted."""
    return " ".join((what, *(f"{key}={_quoted(str(fact))}" for key, fact in facts.items())))


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
