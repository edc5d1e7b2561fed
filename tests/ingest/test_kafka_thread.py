"""The thread of a log's Kafka clients."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

import trustme

from icecore_ingest.logs.kafka_thread import LoopThread


def test_a_line_whose_other_end_says_no_goodbye_does_not_keep_the_thread() -> None:
    """The thread ends though a TLS connection that was closed waits for its broker, as after a wrong password."""
    authority = trustme.CA()
    served, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(served)
    authority.configure_trust(asked)

    async def connect(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=asked, server_hostname="localhost")
        writer.close()

    async def work() -> None:
        async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # so it never hears that the other end closes
            cast("asyncio.Transport", writer.transport).pause_reading()
            await ended.wait()
            writer.transport.abort()

        ended = asyncio.Event()
        server = await asyncio.start_server(hold, "127.0.0.1", 0, ssl=served)
        thread = LoopThread("log-kafka")
        await thread.run(lambda: connect(server.sockets[0].getsockname()[1]))
        await thread.stop()
        assert not thread._thread.is_alive()
        ended.set()
        server.close()

    asyncio.run(work())
