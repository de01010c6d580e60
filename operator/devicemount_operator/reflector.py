# SPDX-License-Identifier: Apache-2.0
"""One kind with a label selector, as it is now and as it changes: LIST, then WATCH, for ever.

Whatever a stream does (ends, breaks, falls silent, 410), the consumer sees only `Listed` and
`Changed`: after a gap all that exists is listed again, and what is not in the list is gone.
Bookmarks move the resourceVersion and prove that the stream is alive, so silence longer than they
may take is a dead stream (load balancers drop without a word).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlencode

from devicemount_operator import errors
from devicemount_operator.packing import Packed
from devicemount_operator.transport import JSON, JsonObject, Transport, sleep_for

SILENCE_S = 70.0  # bookmarks come every 60 s
STREAM_S = 600  # the server ends each stream after this long; going on costs one request
RELIST_S = 600.0  # a stream that ends later is followed by a LIST: it may have lost an event
FIRST_PAUSE_S = 0.1  # before listing again, doubled with each failure in a row
LAST_PAUSE_S = 5.0
MAX_DOUBLINGS = 10
CHUNK = 500  # objects a page of a LIST
FEWER = 8  # times, where a page is too large


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything that existed at a resourceVersion.

    Older knowledge that is not among it is gone.
    """

    objects: tuple[Packed, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Changed:
    """One object is as it is now, or gone."""

    object: JsonObject
    deleted: bool


class Content(Enum):
    """How much of each object is wanted: what to accept of a LIST, and of a WATCH."""

    WHOLE = (JSON, JSON)
    METADATA = (
        f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    )


def _whole(raw: JsonObject) -> JsonObject:
    return raw


@dataclass(frozen=True, slots=True)
class Selection:
    """What to reflect: a collection's path, and which of its objects."""

    path: str
    label_selector: str
    field_selector: str = ""
    content: Content = Content.WHOLE
    kept: Callable[[JsonObject], JsonObject] = _whole  # what of a listed object

    @property
    def query(self) -> dict[str, str]:
        fields = {"fieldSelector": self.field_selector} if self.field_selector else {}
        return {"labelSelector": self.label_selector, **fields}


class Reflector:
    """Endless; `last_heard` is the monotonic time of the last sign of life."""

    def __init__(
        self,
        transport: Transport,
        selection: Selection,
        *,
        timeout_s: float,
        failed: Callable[[errors.ApiError], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        self._transport = transport
        self._selection = selection
        self._timeout_s = timeout_s
        self._failed = failed
        self._silence_s = silence_s
        self.last_heard = time.monotonic()

    async def events(self) -> AsyncGenerator[Listed | Changed, None]:
        """Yield what is and what changes. Errors are told to `failed` and end nothing."""
        failures, listed_at = 0, 0.0
        while True:
            try:
                listed = await list_pages(
                    self._transport, self._selection, timeout_s=self._timeout_s
                )
                self.last_heard = listed_at = time.monotonic()
                yield listed
                async with aclosing(self._watch(listed.version)) as changes:
                    async for change in changes:
                        yield change
            except errors.ApiError as error:
                self._failed(error)
                if self.last_heard - listed_at > LAST_PAUSE_S:  # the watch worked for a while
                    failures, listed_at = 0, self.last_heard
                pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2**failures)
                failures = min(failures + 1, MAX_DOUBLINGS)
                await sleep_for(error, otherwise_s=pause_s)

    async def _watch(self, version: str) -> AsyncGenerator[Changed, None]:
        """Go on from stream to stream while the server still knows the version, and for a while.

        Raises ApiError.
        """
        until = time.monotonic() + RELIST_S
        while time.monotonic() < until:
            query: Mapping[str, str] = {
                **self._selection.query,
                "resourceVersion": version,
                "timeoutSeconds": str(STREAM_S),
            }
            _, accept = self._selection.content.value
            stream = self._transport.watch(
                self._selection.path, query=query, silence_s=self._silence_s, accept=accept
            )
            async with aclosing(stream) as events:
                async for event in events:
                    self.last_heard = time.monotonic()
                    if event["type"] == "ERROR":
                        raise errors.Expired(str(event["object"].get("message")), status=410)
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield Changed(event["object"], deleted=event["type"] == "DELETED")
            await asyncio.sleep(FIRST_PAUSE_S)  # a server that ends streams at once is not stormed


async def list_pages(transport: Transport, selection: Selection, *, timeout_s: float) -> Listed:
    """Return all objects, fewer at a time where they are large.

    Raises ApiError (Expired: a page came too late).
    """
    objects: list[Packed] = []
    query, limit = selection.query, CHUNK
    accept, _ = selection.content.value
    while True:
        path = f"{selection.path}?{urlencode({**query, 'limit': str(limit)})}"
        try:
            page = await transport.call("GET", path, timeout_s=timeout_s, accept=accept)
        except errors.TooLarge:
            if limit == 1:
                raise
            limit = max(1, limit // FEWER)
            continue
        objects += (Packed.of(selection.kept(raw)) for raw in page.get("items") or ())
        if not (proceed := page["metadata"].get("continue")):
            return Listed(tuple(objects), page["metadata"]["resourceVersion"])
        query["continue"] = proceed
