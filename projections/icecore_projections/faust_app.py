"""Faust between Kafka and the runner: group membership, fetching, rebalances. Nothing else.

    ICECORE_LOG=kafka://broker:9092 ICECORE_DATA=/data faust -A icecore_projections.faust_app worker

`icecore serve store --log kafka://…` runs the same application in the process that also answers queries. One agent
hands what Faust delivers to a `Feed`, from which the runner folds as it does from an embedded log: the same batches,
retries, dead letters and halts.

The store's own offsets are authoritative: on every assignment the consumer seeks to what the store has committed with
its rows. What Faust commits to the brokers is for lag graphs only, so nothing depends on it being right. Each store is
a consumer group of its own and folds everything; a DuckDB file has one owner at a time, so a worker that was paused
for longer than its session has nobody to overtake it, and continues where its file says it was.

For the same reason nothing waits for the group: partitions that Faust has not been given (its predecessor was killed
and is a member until its session ends, the group's coordinator is away, a rebalance goes on) the feed reads by itself.
So it does where Faust has been given partitions and says nothing of them: after many rebalances in a row it may stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import entry_points
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, cast

import faust
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from yarl import URL

from icecore.codec import decode_envelope
from icecore.errors import BadRequest, IcecoreError, LogCorrupt, SettingsError, StoreDamaged, Unavailable
from icecore.log import EventLog, StoredRecord
from icecore.position import Place, Position, Token
from icecore_projections import generations
from icecore_projections.feed import Feed
from icecore_projections.runner import Runner

FETCHES: Final = 16
WITHIN_S: Final = 0.02
"""A take: so many fetches, or what came in so long. The runner gathers what is worth a commit."""
BUFFERED: Final = 32
"""Fetches that Faust itself may hold; each is about a megabyte."""

ALONE_S: Final = 0.05
"""How often it is looked where the log ends while the group has not given us all of it."""

SILENT_S: Final = 2.0
"""A partition that goes on, and of which Faust brings nothing for so long, is read without it."""
STUCK_S: Final = 30.0
"""Faust is started again when it has brought nothing at all for so long although it should have."""

RESTARTS_S: Final = (0.2, 1.0, 2.0, 5.0)
"""Waits before Faust is started again; the last one goes on."""
STOP_S: Final = 10.0

logger = logging.getLogger(__name__)
for _noisy in ("faust", "mode"):  # heard where the program that runs us configures logging, as Faust's own does
    logging.getLogger(_noisy).addHandler(logging.NullHandler())


class Brokers(Protocol):
    """A log on Kafka, as far as Faust must know it (`icecore_ingest.logs.kafka_settings.KafkaSettings`)."""

    @property
    def servers(self) -> tuple[str, ...]:
        """Brokers to ask first, as HOST:PORT."""
        ...

    @property
    def prefix(self) -> str:
        """What the topics' names begin with."""
        ...

    @property
    def topics(self) -> Mapping[str, str]:
        """The topic of each stream."""
        ...

    @property
    def session_timeout_s(self) -> float:
        """After so long without a heartbeat the group gives the partitions to another member."""
        ...

    def client_options(self) -> dict[str, Any]:
        """What aiokafka clients are given: protocol, TLS context, user and password."""
        ...


class _Consumer(driver.Consumer):
    """Faust's consumer, which begins where the store is, and hands over what was fetched of a partition in one piece.

    Faust makes two tasks and an event for each message, which would cost a record of 1,000 points as much as folding
    it does. Here a message's value is a list of records, and its offset that of the last of them.
    """

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109 - Faust's name
        """Fetch, and yield one message for each partition that has news."""
        found, active = await self._wait_next_records(timeout)
        for tp, records in (found or {}).items():
            if self.should_stop or not self.flow_active:
                return  # a rebalance: what is left is fetched again, from where the store is
            if records and (active is None or tp in active):
                message = self._to_message(tp, records[-1])
                message.value = cast("Any", records)
                yield tp, message

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the store's offsets: they were committed in one transaction with the rows."""
        app = self.app
        assert isinstance(app, FoldingApp)
        assigned = {TP(tp.topic, tp.partition) for tp in self.assignment()}
        offsets = app.resume(assigned)
        for tp, offset in offsets.items():
            await self._seek(tp, offset)
        if offsets:
            await self._commit(offsets)  # for lag graphs: what the feed read by itself is not behind
        app.delivers(assigned)
        return offsets


class _Transport(driver.Transport):
    Consumer: ClassVar[type[driver.Consumer]] = _Consumer  # pyright: ignore[reportIncompatibleVariableOverride]


class _Boot(BootStrategy):
    """Without Faust's own web server, which its command line would open to every address, without a key."""

    enable_web = False


class FoldingApp(faust.App):
    """A Faust application that feeds a runner.

    Args:
        brokers: the log on Kafka.
        group: the consumer group, which shows up in lag graphs: one for each store.
    """

    BootStrategy = _Boot

    def __init__(self, brokers: Brokers, group: str, **options: Any) -> None:
        urls = [URL(f"kafka://{server}") for server in brokers.servers]
        super().__init__(
            group,
            broker=urls,
            broker_credentials=_credentials(brokers.client_options()),
            broker_session_timeout=brokers.session_timeout_s,
            broker_heartbeat_interval=brokers.session_timeout_s / 4,
            broker_max_poll_interval=3600.0,  # a long fold is no reason to lose the partitions
            consumer_auto_offset_reset="earliest",
            stream_buffer_maxsize=BUFFERED,
            stream_wait_empty=False,
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            key_serializer="raw",
            value_serializer="raw",
            autodiscover=False,
            datadir=options.pop("datadir", "/nonexistent"),
            **options,
        )
        self.transport = _Transport(urls, self)
        self.brokers = brokers
        self._streams = {topic: stream for stream, topic in brokers.topics.items()}
        self._feed: Feed | None = None
        self._folded: Callable[[], Token] = Token
        self._delivered: frozenset[Place] = frozenset()
        """Partitions that the group has given us, and whose records Faust brings."""
        self._heard = time.monotonic()
        """When Faust brought something last, or should begin to."""
        records = self.topic(*self._streams, key_type=bytes, value_type=bytes)
        self.agent(records, name="fold")(cast("Any", self._take))

    def attach(self, feed: Feed, folded: Callable[[], Token]) -> None:
        """Say where records go, and what is folded already. To be called before the application is started.

        Args:
            feed: takes what is delivered.
            folded: the next offset of every partition, as the store has committed it.
        """
        self._feed, self._folded = feed, folded

    def resume(self, assigned: set[TP]) -> dict[TP, int]:
        """Where to read each partition from; what was delivered of them before is forgotten."""
        assert self._feed is not None, "attach comes before start"
        places = {tp: self._place(tp.topic, tp.partition) for tp in assigned if tp.topic in self._streams}
        self._feed.forget(places.values())
        token = self._folded()
        return {tp: token.next_offset(place) for tp, place in places.items()}

    def delivers(self, assigned: set[TP]) -> None:
        """Leave partitions to Faust, which fetches them from now on, until the next rebalance."""
        self._heard = time.monotonic()
        self._delivered = frozenset(self._place(tp.topic, tp.partition) for tp in assigned if tp.topic in self._streams)

    def on_rebalance_start(self) -> None:
        """Count on no partition any more. Called in the consumer's thread."""
        self._delivered = frozenset()
        super().on_rebalance_start()

    async def on_start(self) -> None:
        """Read by ourselves until Faust delivers."""
        await super().on_start()
        self.add_future(self._go_alone())

    async def _go_alone(self) -> None:
        """Have the feed read what Faust does not bring: the folder is locked by us, so nobody else folds it."""
        assert self._feed is not None, "attach comes before start"
        feed = self._feed
        places = {Place(stream, n) for stream, count in feed.partitions.items() for n in range(count)}
        told, seen, looked = Token(), Token(), time.monotonic()
        while not self.should_stop:
            ours = places - self._delivered
            looks = time.monotonic() - looked >= SILENT_S
            if ours or looks:
                with contextlib.suppress(IcecoreError):  # away: Faust meets it too, and says so
                    end = await feed.log.end()
                    if looks:
                        silent = _silent(places - ours, feed, told, await feed.end(), seen)
                        if silent and time.monotonic() - self._heard > STUCK_S:
                            await self.crash(
                                Unavailable(f"expected records of {len(silent)} partitions, heard nothing")
                            )
                        ours |= silent
                    for place in ours:
                        feed.announce(place, end.next_offset(place))
                    if looks:
                        told, seen, looked = await feed.end(), end, time.monotonic()
                    await feed.deliver(())
            await asyncio.sleep(ALONE_S)

    async def _take(self, stream: faust.Stream[Any]) -> None:
        """The agent: hand over what was delivered; acknowledged when there is room for more."""
        assert self._feed is not None, "attach comes before start"
        async for events in stream.take_events(FETCHES, within=WITHIN_S):
            self._heard = time.monotonic()
            for event in events:
                place = self._place(event.message.topic, event.message.partition)
                records: list[StoredRecord] = []
                for message in cast("Any", event.message.value):
                    try:
                        records.append(stored(place, message))
                    except LogCorrupt:  # left out: the runner meets it where it reads the log itself, and says so
                        self._feed.announce(place, message.offset + 1)
                await self._feed.deliver(records)

    def _place(self, topic: str, partition: int) -> Place:
        return Place(self._streams[topic], partition)


@contextlib.asynccontextmanager
async def feeding(
    brokers: Brokers,
    group: str,
    log: EventLog,
    folded: Callable[[], Token],
    say: Callable[[str], None],
    join: Callable[[FoldingApp], None] = lambda _: None,
) -> AsyncIterator[Feed]:
    """A feed that Faust fills in this event loop, for as long as the block lasts.

    A Faust application that ends by itself (brokers away for long) is started anew, where the store is.

    Args:
        brokers: where Faust reads.
        group: the consumer group.
        log: the same log, for what is not delivered in its turn.
        folded: the next offset of every partition, as the store has committed it.
        say: told a sentence when Faust had to be started again.
        join: adds agents to every application that is made.
    """
    for noisy in ("faust", "mode", __name__):  # each start and stop of each part; that it is at work is in `status`
        logging.getLogger(noisy).setLevel(logging.WARNING)
    feed = Feed(log)

    def made() -> FoldingApp:
        app = FoldingApp(brokers, group)
        app.attach(feed, folded)
        join(app)
        return app

    keeping = asyncio.create_task(_keep(made, say))
    try:
        yield feed
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _keep(made: Callable[[], FoldingApp], say: Callable[[str], None]) -> None:
    for wait in chain(RESTARTS_S, repeat(RESTARTS_S[-1])):
        app = made()
        why = "it ended"
        try:
            await app.start()
            await app.wait_until_stopped()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is lost by starting over
            why = f"{type(error).__name__}: {error}"
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(app.stop()), STOP_S)
        say(f"Faust is started again: {why}")
        await asyncio.sleep(wait)


def _silent(places: set[Place], feed: Feed, told: Token, now: Token, seen: Token) -> set[Place]:
    """Partitions of which the feed has not heard since a look that saw more of them in the log, and waits for that."""
    return {
        place
        for place in places
        if now.next_offset(place) <= told.next_offset(place) < seen.next_offset(place) and not feed.holds(place)
    }


def stored(place: Place, message: Any) -> StoredRecord:
    """A record from Kafka's message: key, value, and the envelope in a header.

    Raises:
        LogCorrupt: the message is none that icecore wrote.
    """
    envelope = next((value for name, value in message.headers if name == "icecore-envelope"), b"")
    try:
        return StoredRecord(
            Position(*place, message.offset),
            (message.key or b"").decode(),
            decode_envelope(envelope),
            message.value or b"",
        )
    except (BadRequest, UnicodeDecodeError) as error:
        raise LogCorrupt(
            f"expected an event at {place.stream}:{place.partition}:{message.offset}, got {error}"
        ) from error


def _credentials(options: Mapping[str, Any]) -> Any:
    """Faust's own words for who we are."""
    protocol, context = options["security_protocol"], options.get("ssl_context")
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


# --------------------------------------------------------------------------------------------- the plain worker


class WorkerApp(FoldingApp):
    """The application with a store of its own: what `faust -A icecore_projections.faust_app worker` runs.

    Args:
        brokers: the log on Kafka.
        group: the consumer group.
        folder: the store's folder.
        open_log: opens the log in the event loop that asks.
    """

    def __init__(
        self, brokers: Brokers, group: str, folder: Path, open_log: Callable[[], Awaitable[EventLog]], **options: Any
    ) -> None:
        super().__init__(brokers, group, **options)
        self._folder = folder
        self._open_log = open_log
        self._enough = asyncio.Event()
        self._folding: asyncio.Task[None] | None = None
        self._opened: list[Any] = []

    async def on_start(self) -> None:
        """Open the log and the store, and begin to fold what will be delivered."""
        log = await self._open_log()
        store = generations.open_current(self._folder, log_id=log.log_id, say=logger.warning)
        await store.check_log(log)
        feed = Feed(log)
        self.attach(feed, store.token)
        self._opened = [store, log]
        self._folding = asyncio.create_task(self._fold(Runner(feed, store)))
        await super().on_start()

    async def _fold(self, runner: Runner) -> None:
        try:
            await runner.run(self._enough)
        except StoreDamaged as error:
            # the next start sets the file aside and folds the log anew
            await self.crash(error)

    async def on_stop(self) -> None:
        """Finish the batch in hand, and close."""
        await super().on_stop()
        self._enough.set()
        if self._folding is not None:
            await asyncio.gather(self._folding, return_exceptions=True)
        if self._opened:
            store, log = self._opened
            store.close()
            await log.close()


def worker_app(environment: Mapping[str, str]) -> WorkerApp:
    """The application that `ICECORE_LOG` and `ICECORE_DATA` describe.

    Raises:
        SettingsError: one of them is missing, or the log is not on Kafka.
    """
    where, data = environment.get("ICECORE_LOG", ""), environment.get("ICECORE_DATA", "")
    if not where.startswith("kafka://") or not data:
        raise SettingsError(
            f"expected ICECORE_LOG=kafka://… and ICECORE_DATA=FOLDER, got {where!r} and {data!r}",
            hint="without Kafka nothing needs Faust: icecore up",
        )
    rooms = {found.name: found for found in entry_points(group="icecore.logs")}
    brokers: Brokers = rooms["brokers"].load()(where)
    open_log: Callable[..., Awaitable[EventLog]] = rooms["open"].load()
    folder = Path(data).expanduser()
    return WorkerApp(brokers, group_of(brokers, folder), folder / "store", lambda: open_log(where, readonly=True))


def group_of(brokers: Brokers, data: Path) -> str:
    """The consumer group of the store in a data folder: its own, and the same after every restart."""
    file = data / "run" / "group"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text("ascii").strip()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    group = f"{brokers.prefix}.store.{uuid.uuid4().hex[:12]}"
    file.write_text(group + "\n", "ascii")
    return group


def __getattr__(name: str) -> Any:
    """`app`, made when Faust's command line asks for it."""
    if name == "app":
        return worker_app(os.environ)
    raise AttributeError(name)
