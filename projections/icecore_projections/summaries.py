"""`PREFIX.run-summaries`: the latest state and summary of every run, as a compacted topic for other people's programs.

A Faust agent publishes the runs that batches changed, a second later, or some where many did: it reads them from the
store, sends them and waits until the brokers have them. What is published is remembered as a token in DATA/run, moved
on only by acknowledged sends; at the start every run that changed since is published again. So after any kill nothing
that changed stays unpublished, and what is published twice is compacted away.

The topic is optional: `icecore topics create` makes it. Where it is not there nothing is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
import faust
import orjson
from aiokafka.admin import AIOKafkaAdminClient

from icecore.errors import BadRequest
from icecore.position import LEDGER, METRICS, Place, Token
from icecore_projections.faust_app import Brokers
from icecore_projections.folds.series import PARTITIONS_MOST
from icecore_projections.runner import Prepared
from icecore_projections.store import Store

TOPIC: Final = "run-summaries"
"""After the log's prefix and a dot."""
AT_ONCE: Final = 1_000
"""Runs read and sent together."""
EVERY_S: Final = 1.0
REST: Final = 20
"""After publishing for so long, rest as many times as long: a thousand busy runs cost 0.15 s a round to read."""
LOOK_S: Final = 30.0
"""How often a topic that is not there is looked for."""
VALUE_BYTES: Final = 900_000
"""A message takes no more by default: of a larger run the config is left out, then the summary."""
FILE: Final = "summaries.json"


Send = Callable[[bytes, bytes | None], Awaitable[Awaitable[object]]]
"""Hands one message (key, value) over; what it answers with is done when the brokers have it."""
Topics = Callable[[], Awaitable[Iterable[str]]]
"""Which topics there are."""


class Read(Protocol):
    """Reads runs from a store: what is to be published of each, by path; None for a deleted one."""

    def __call__(self, store: Store, runs: Sequence[int]) -> Mapping[str, Mapping[str, Any] | None]:
        """The runs of some numbers; those that have no `run.started` yet are left out."""
        ...


class Summaries:
    """Knows which runs are to be published. Belongs to the event loop of the runner and of Faust.

    Args:
        topic: its whole name.
        topics: which topics there are: asked until this one is among them.
        folder: DATA/run, where the published token is kept.
        store: the store in use.
        read: reads runs from it.
        say: told a sentence when a person may want to know.
        sent: told how many runs were published just now, and how many are waiting.
    """

    def __init__(
        self,
        topic: str,
        topics: Topics,
        folder: Path,
        store: Callable[[], Store],
        read: Read,
        say: Callable[[str], None],
        sent: Callable[[int, int], None] = lambda _sent, _waiting: None,
    ) -> None:
        self.topic = topic
        self._topics = topics
        self._file = folder / FILE
        self._store = store
        self._read = read
        self._say = say
        self._sent = sent
        self._pending: dict[int, Token] = {}
        """Runs to publish, the longest waiting first, and the token before the commit that changed each."""
        self._noted = Token()
        """Every change up to here is in `pending`, or published."""
        self._published = _load(self._file)
        self._there = False
        self._complete = False
        """Whether `pending` has all that changed since `published`."""
        self._looked = float("-inf")
        self._missed = False
        """It was said that the topic is not there."""
        self._said = ""
        """The kind of failure that was said last."""

    # --------------------------------------------------------------------------------------------- what changed

    def changed(self, batch: Prepared) -> None:
        """Note the runs of a batch that was committed just now."""
        if not self._there:
            return
        for run in changed_runs(batch):
            self._pending.setdefault(run, self._noted)
        self._noted = self._store().token()

    def anew(self) -> None:
        """The store in use is another file now: what it knows more was told by no batch."""
        self._complete = False

    # -------------------------------------------------------------------------------------------------- publish

    def join(self, app: faust.App) -> None:
        """Add the agent to an application, before that is started."""
        topic = app.topic(self.topic, key_type=bytes, value_type=bytes)
        nudges = app.channel(value_type=bytes)
        at_work = asyncio.Lock()
        rested = 0.0

        async def send(key: bytes, value: bytes | None) -> Awaitable[object]:
            sent: Awaitable[object] = await topic.send(key=key, value=value, force=True)
            return sent

        async def publish(stream: Any) -> None:
            nonlocal rested
            async for _ in stream:
                began = asyncio.get_running_loop().time()
                async with at_work:
                    await self.publish(send)
                ended = asyncio.get_running_loop().time()
                rested = ended + REST * (ended - began)

        async def nudge() -> None:
            # not a message for each run: channels are emptied at a rebalance, and `pending` is what counts
            if not at_work.locked() and asyncio.get_running_loop().time() >= rested:
                await nudges.send(value=b"")

        app.agent(nudges, name=TOPIC)(publish)
        app.timer(EVERY_S, name=f"{TOPIC}-nudge")(nudge)

    async def publish(self, send: Send) -> None:
        """Publish all that waits; what fails waits on, and is said."""
        try:
            if not await self._is_there():
                return
            if not self._complete:
                await self._gather()
            store = self._store()
            if not store.token().covers(self._published):
                return  # it is being folded anew: what it says of a run is older than what was published
            while self._pending and self._complete:
                await self._publish_some(send, store)
            self._said = ""
        except Exception as error:  # noqa: BLE001 - brokers away, a store that closes: the next nudge tries again
            self._sent(0, len(self._pending))
            why = f"run summaries are not published now: {type(error).__name__}: {error}"
            if self._said != type(error).__name__:
                self._say(why)
            self._said = type(error).__name__

    async def _publish_some(self, send: Send, store: Store) -> None:
        batch = dict(islice(self._pending.items(), AT_ONCE))
        for run in batch:
            del self._pending[run]
        try:
            found = await asyncio.to_thread(self._read, store, list(batch))
            sends = [await send(path.encode(), None if doc is None else encoded(doc)) for path, doc in found.items()]
            await asyncio.gather(*sends)
        except BaseException:
            later = {run: before for run, before in self._pending.items() if run not in batch}
            self._pending = {**batch, **later}
            raise
        self._sent(len(found), len(self._pending))
        done = next(iter(self._pending.values()), self._noted)
        if self._complete and done != self._published:
            self._published = done
            await asyncio.to_thread(_save, self._file, done)

    async def _gather(self) -> None:
        """Everything that changed since what was published: at the start, and when the store is another file."""
        self._complete = True
        self._noted = self._store().token()
        try:
            store, published = self._store(), self._published
            runs = await asyncio.to_thread(_runs_since, store, published)
        except BaseException:
            self._complete = False
            raise
        first = dict.fromkeys(runs, published)
        self._pending = {**first, **{run: at for run, at in self._pending.items() if run not in first}}

    async def _is_there(self) -> bool:
        now = asyncio.get_running_loop().time()
        if not self._there and now - self._looked >= LOOK_S:
            self._looked = now
            self._there = self.topic in await self._topics()
            if not self._there and not self._missed:
                self._missed = True
                self._say(f"run summaries are not published: `icecore topics create` makes the topic {self.topic}")
        return self._there


def changed_runs(batch: Prepared) -> set[int]:
    """The numbers of the runs whose row or activity a batch changes."""
    changes = batch.changes
    tables = [rows.rows for rows in changes.replace.get("current_runs", ())]
    tables += [rows.rows for rows in changes.update.get("run_activity", ())]
    tables += changes.append.get("run_activity", ())
    return {int(run) for table in tables for run in table.column("run").to_numpy()}


def encoded(doc: Mapping[str, Any]) -> bytes:
    """A run as it is published; of one that is too large some is left out, and named in `left_out`."""
    whole = dict(doc)
    left_out: list[str] = []
    for name in ("", "config", "summary"):
        if name:
            del whole[name]
            left_out.append(name)
        value = orjson.dumps({**whole, "left_out": left_out} if left_out else whole)
        if len(value) <= VALUE_BYTES:
            break
    return value


def _runs_since(store: Store, published: Token) -> list[int]:
    """The runs that changed at or after a token."""
    with store.reading() as con:
        return runs_since(con, published)


def runs_since(con: duckdb.DuckDBPyConnection, published: Token) -> list[int]:
    """The numbers of the runs that changed at or after `published`."""
    rows = con.execute(
        "SELECT run FROM current_runs WHERE off >= ?", [published.next_offset(Place(LEDGER, 0))]
    ).fetchall()
    found: set[int] = {run for (run,) in rows}
    parts = [part for (part,) in con.execute(f"SELECT part FROM offsets WHERE stream = '{METRICS}'").fetchall()]  # noqa: S608
    starts = {part: published.next_offset(Place(METRICS, part)) for part in parts}
    least = min(starts.values(), default=0)
    active = con.execute(
        f"SELECT run, a.off, any_value(series % {PARTITIONS_MOST}) "  # noqa: S608
        "FROM run_activity a LEFT JOIN series USING (run) WHERE a.off >= ? GROUP BY ALL",
        [least],
    ).fetchall()
    return sorted(found | {run for run, off, part in active if off >= starts.get(part, least)})


async def topics_of(brokers: Brokers) -> Iterable[str]:
    """The cluster's topics. Asked as an administrator: asking a producer could make the topic."""
    admin = AIOKafkaAdminClient(**brokers.client_options())
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


def _load(file: Path) -> Token:
    try:
        return Token.parse(str(orjson.loads(file.read_bytes())["published"]))
    except (OSError, ValueError, KeyError, TypeError, BadRequest):
        return Token()  # nothing is known: everything is published


def _save(file: Path, token: Token) -> None:
    part = file.with_suffix(f".part-{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk: more is published again after a restart
        part.write_bytes(orjson.dumps({"published": str(token)}))
        part.replace(file)
