# SPDX-License-Identifier: Apache-2.0
"""Carries connections from 127.0.0.1 of the machine to the API server inside its namespace.

A socket belongs to the network namespace in which it was made, so only the making needs
setns; a thread of its own does it, because a thread's namespace is its own. The listening
socket is inherited, so that the port is known, and held, before this process runs.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import threading

from pyroute2 import netns as pyroute2_netns

from devicemount_testbed.topology import API_PORT, CONTROL_ADDRESS, CONTROL_NETNS

CHUNK_BYTES = 65536
log = logging.getLogger("relay")


def socket_in(netns: str) -> socket.socket:
    """Make a TCP socket that belongs to the namespace."""
    made: list[socket.socket] = []

    def make() -> None:
        pyroute2_netns.setns(netns)
        # The protocol is named since asyncio turns Nagle's algorithm off only where it is: with
        # it, a request in two segments waits 40 ms for a delayed acknowledgement.
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        made.append(socket.socket(socket.AF_INET, kind, socket.IPPROTO_TCP))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"cannot enter network namespace {netns}")
    return made[0]


async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the API server inside the control plane's namespace."""
    inside = socket_in(CONTROL_NETNS)
    try:
        await asyncio.get_running_loop().sock_connect(inside, (CONTROL_ADDRESS, API_PORT))
        return await asyncio.open_connection(sock=inside)
    except BaseException:
        inside.close()
        raise


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end, then close the other side."""
    try:
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        log.debug("connection reset")  # the other direction ends by the close below
    finally:
        writer.close()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection until either side closes."""
    with contextlib.closing(writer):
        try:
            inner_reader, inner_writer = await dial()
        except OSError as error:
            log.warning("API server not reached: %s", error)
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))


async def serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(carry, sock=listener)
    await server.serve_forever()


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
