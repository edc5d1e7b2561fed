"""Random histories of a few runs: records as several clients would write them, and stores folded from them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from icecore.codec import Row, encode_event, rows_to_blocks
from icecore.events import (
    ConsoleLogged,
    Envelope,
    Event,
    MetricsLogged,
    RunDeleted,
    RunDropped,
    RunFinished,
    RunHeartbeat,
    RunRestored,
    RunStarted,
    RunSummarised,
    RunUpdated,
    SystemLogged,
)
from icecore.log import EventLog, Record
from icecore.position import LEDGER, METRICS
from icecore.testing.memory_log import MemoryLog
from icecore_projections.digest import Digest
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store

PATHS = ("ann/digits/r1", "ann/digits/r2", "bo/lab/é1")


class Said(NamedTuple):
    """What a client said: which client, the event or a payload of no known kind, and when it was accepted."""

    client: int
    event: Event | tuple[str, bytes]
    ts: int


def to_records(history: Sequence[Said]) -> list[tuple[str, Record]]:
    """(stream, record) of each thing said, numbered as clients do: a producer for each client and run."""
    seqs: dict[tuple[str, str], itertools.count[int]] = {}
    records = []
    for i, said in enumerate(history):
        if isinstance(said.event, Event):
            kind, stream, key, payload = said.event.TYPE, said.event.STREAM, said.event.key, encode_event(said.event)
        else:
            kind, stream, key, payload = said.event[0], METRICS, PATHS[said.client % len(PATHS)], said.event[1]
        producer = f"{said.client:08x}-0000-7000-8000-{PATHS.index(key) if key in PATHS else 99:012x}"
        seq = next(seqs.setdefault((stream, producer), itertools.count()))
        identity = f"{i:08x}-0000-7000-8000-000000000000"
        envelope = Envelope(identity, kind, 1, producer, seq, said.ts, said.ts + 5, "ann", "key-1")
        records.append((stream, Record(key, envelope, payload)))
    return records


async def append(log: EventLog, records: Sequence[tuple[str, Record]]) -> None:
    """Append to both streams, each in order."""
    for stream in (LEDGER, METRICS):
        await log.append(stream, [record for where, record in records if where == stream])


async def fold_all(log: EventLog, store: Store, *, records: int = 5_000) -> None:
    """Fold until there is nothing new."""
    runner = Runner(log, store, records=records)
    while await runner.step():
        pass


def folded(
    records: Sequence[tuple[str, Record]], path: Path, *, batch: int = 5_000, partitions: int = 1, compact: int = 0
) -> Digest:
    """The digest of a store folded from `records`, `batch` at a time; compacted every `compact` steps."""

    async def run() -> Digest:
        log = MemoryLog({LEDGER: 1, METRICS: partitions})
        await append(log, records)
        store = Store.open(path, log_id=log.log_id)
        with contextlib.closing(store):
            runner = Runner(log, store, records=batch)
            for step in itertools.count(1):
                if not await runner.step():
                    return digest_of(store)
                if compact and step % compact == 0:
                    store.compact(1)
        raise AssertionError("unreachable")

    return asyncio.run(run())


def shuffled(records: Sequence[tuple[str, Record]], seed: int) -> list[tuple[str, Record]]:
    """The records in another order that keeps each run's own, within each stream."""
    lanes: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    for stream, record in records:
        lanes.setdefault((stream, record.key), []).append((stream, record))
    chance = random.Random(seed)
    order = [lane for lane, members in lanes.items() for _ in members]
    chance.shuffle(order)
    heads = {lane: iter(members) for lane, members in lanes.items()}
    return [next(heads[lane]) for lane in order]


def doubled(records: Sequence[tuple[str, Record]], seed: int) -> list[tuple[str, Record]]:
    """The records with some of them again, later: clients that did not hear the answer."""
    chance = random.Random(seed)
    result = list(records)
    for _ in range(len(records) // 2 + 1):
        if result:
            first = chance.randrange(len(result))
            result.insert(chance.randint(first + 1, len(result)), result[first])
    return result


# ------------------------------------------------------------------------------------------------------ strategies

_FLOATS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 5e-324, float(2**53), float("nan"), float("inf")])
_SCALARS: st.SearchStrategy[Any] = _FLOATS | st.integers(-5, 5) | st.booleans() | st.sampled_from(["warm", "é", ""])
_KEYS = st.sampled_from(["loss", "val/acc", "phase", "ключ"])
_STEPS = st.integers(-3, 20) | st.sampled_from([2**62, -(2**62)])
_ROWS = st.lists(st.builds(Row, _STEPS, st.integers(0, 99), st.dictionaries(_KEYS, _SCALARS, max_size=3)), max_size=5)
_PATHS = st.sampled_from(PATHS)
_SMALL = st.integers(0, 99)
_TREES = st.dictionaries(st.sampled_from(["lr", "net"]), st.integers(0, 3) | st.just({"depth": 2}), max_size=2)
_STATES = st.sampled_from(["finished", "failed", "killed"])


def _console(run: str, texts: list[str]) -> ConsoleLogged:
    return ConsoleLogged(run=run, ts=list(range(len(texts))), stream=["stdout"] * len(texts), text=texts)


def _system(run: str, n: int) -> SystemLogged:
    return SystemLogged(run=run, blocks=[{"step": [n], "ts": [n], "cols": {"cpu": [n / 3]}}])


_EVENTS: st.SearchStrategy[Any] = st.one_of(
    st.builds(lambda run, rows: MetricsLogged(run=run, blocks=rows_to_blocks(rows)), _PATHS, _ROWS),
    st.builds(lambda run, rows: MetricsLogged(run=run, blocks=rows_to_blocks(rows)), _PATHS, _ROWS),
    st.builds(
        lambda run, n: SystemLogged(run=run, blocks=[{"step": [n], "ts": [n], "cols": {"cpu": [n / 3]}}]),
        _PATHS,
        _SMALL,
    ),
    st.builds(_console, _PATHS, st.lists(st.sampled_from(["a", "b \x1b[1m", "é"]), max_size=3)),
    st.builds(RunHeartbeat, run=_PATHS),
    st.builds(RunStarted, run=_PATHS, started_ts=_SMALL, config=_TREES, resumed=st.booleans()),
    st.builds(RunUpdated, run=_PATHS, config=_TREES, tags=st.none() | st.just(["t", "u"])),
    st.builds(RunSummarised, run=_PATHS, set=_TREES),
    st.builds(RunFinished, run=_PATHS, state=_STATES, finished_ts=_SMALL, runtime_ms=_SMALL),
    st.builds(RunDropped, run=_PATHS, reason=st.just("full"), points=_SMALL),
    st.builds(RunDeleted, run=_PATHS),
    st.builds(RunRestored, run=_PATHS),
)
_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [("metrics.logged", b"no json"), ("metrics.logged", b'{"run":7}'), ("future.event", b'{"x":1}')]
)
HISTORIES = st.builds(
    lambda said, odd: [*said[: len(said) // 2], *odd, *said[len(said) // 2 :]],
    st.lists(st.builds(Said, st.integers(1, 3), _EVENTS, _SMALL), max_size=30),
    st.lists(st.builds(Said, st.integers(1, 3), _ODD, _SMALL), max_size=3),
)


def sample(seed: int = 1, steps: int = 200) -> list[Said]:
    """A history in which every table has rows, the same for the same arguments."""
    chance = random.Random(seed)
    history = [Said(1, RunStarted(run=run, started_ts=1, config={"lr": 0.1, "n": {"d": 2}}), 1) for run in PATHS]
    for step in range(steps):
        run = chance.choice(PATHS)
        numbers = {"loss": chance.random(), "acc": chance.choice([0.5, -0.0, float("nan"), float("inf")])}
        rows = [Row(step, 1_000 + step, numbers), Row(step, 1_000 + step, {"phase": "warm", "best": step % 2 == 0})]
        history.append(Said(1, MetricsLogged(run=run, blocks=rows_to_blocks(rows)), step))
    for run in PATHS:
        system = [{"step": [0, 1], "ts": [5, 6], "cols": {"cpu": [0.25, 0.5]}}]
        history.append(Said(1, SystemLogged(run=run, blocks=system), 500))
        history.append(Said(1, _console(run, ["one", "two"]), 501))
        history.append(Said(1, RunSummarised(run=run, set={"best": 0.9}), 502))
        history.append(Said(1, RunFinished(run=run, finished_ts=600, runtime_ms=70), 503))
    history.append(Said(1, RunRestored(run=PATHS[0]), 504))
    history.append(Said(2, ("metrics.logged", b"no json"), 505))
    history.append(Said(2, ("future.event", b"{}"), 506))
    return history
