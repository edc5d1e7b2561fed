"""A new store folded from the first event, beside the serving one; compared with it; and put in its place.

How the two are compared at one position, without stopping anybody: the serving store is digested in one DuckDB
transaction, which sees one commit, and that commit's token is in the same transaction. The new store is folded from
a view of the log that ends at this token, and digested there. Only then is it folded on to the log's end.

A kill at any moment leaves the serving store as it was: the new one counts only from the rename of CURRENT on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from icecore.errors import LogReadOnly, StoreAhead, StoreDamaged, StoreError, StoreTooNew
from icecore.log import Batch, EventLog, Record
from icecore.position import Place, Position, Token
from icecore_projections import generations
from icecore_projections.digest import Digest, digest
from icecore_projections.failures import told
from icecore_projections.poison import DEAD_MOST, Guard, PoisonDominatesError
from icecore_projections.runner import Runner
from icecore_projections.store import Store

NEAR_ENOUGH: Final = 2_000
"""Records behind the log's end at which the switch is made; the serving runner folds the rest as ever."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is, in records of the log."""

    stage: str
    """`compare` (the serving store is digested), `fold`, `digest` (of the new one), `catch up`, `switch`."""
    done: int
    total: int
    rate: float
    """Records a second since the fold began."""

    def as_json(self) -> dict[str, Any]:
        """For an API answer."""
        return {"stage": self.stage, "done": self.done, "total": self.total, "rate": round(self.rate, 1)}


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found and did."""

    path: Path
    """The new store; removed again after a mere comparison."""
    token: Token
    """The position at which the digests were taken."""
    digest: Digest
    """Of the new store."""
    serving: Digest | None
    """Of the serving store at the same position; None where there was none that could be read."""
    trouble: str
    """Why there was nothing to compare with, or empty."""
    switched: bool
    records: int
    points: int
    seconds: float

    @property
    def differing(self) -> list[str]:
        """Tables in which the serving store did not say what the log says."""
        return self.serving.differing(self.digest) if self.serving is not None else []

    @property
    def matches(self) -> bool:
        """Whether there was a serving store, and it said what the log says."""
        return self.serving is not None and not self.differing

    @property
    def rate(self) -> float:
        """Points a second, folding and digesting both counted."""
        return self.points / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """For an API answer."""
        return {
            "path": str(self.path),
            "token": str(self.token),
            "digest": self.digest.hex,
            "serving_digest": self.serving.hex if self.serving is not None else None,
            "matches": self.matches,
            "differing": [
                {"table": name, "serving": _told(self.serving, name), "rebuilt": _told(self.digest, name)}
                for name in self.differing
            ],
            "trouble": self.trouble,
            "switched": self.switched,
            "records": self.records,
            "points": self.points,
            "seconds": round(self.seconds, 3),
            "points_per_second": round(self.rate, 1),
        }


def _told(found: Digest | None, table: str) -> dict[str, Any] | None:
    if found is None or table not in found.tables:
        return None
    return {"rows": found.tables[table].rows, "digest": found.tables[table].hex}


async def rebuild(
    log: EventLog,
    folder: Path,
    *,
    serving: Store | None = None,
    verify: bool = False,
    upto: Token | None = None,
    progress: Report = lambda _: None,
) -> Rebuilt:
    """Fold the log into a new store, compare it with the serving one, and switch to it.

    Where the two differ the new one is right: the log is the truth. Whoever serves keeps the old file open until it
    opens the store anew (`generations.open_current`), and removes it with `generations.clean` then.

    Args:
        log: what is folded.
        folder: DATA/store.
        serving: the open store where this process serves; otherwise the one in `folder` is opened to read.
        verify: only compare, and remove the new store.
        upto: fold no further, and compare only with a serving store that is exactly there; not to be switched to.
        progress: told after every batch; what it raises ends the rebuild.

    Raises:
        StoreLocked: another process has the store open, or rebuilds it.
        StoreAhead: the serving store has folded what the log does not have.
        LogError: the log cannot be read.
        StoreError: the new store cannot be written; as after any error, it is removed.
    """
    with generations.building(folder):
        result = await _rebuild(log, folder, serving, upto, progress, switching=not verify and upto is None)
    if result.switched and serving is None:
        generations.clean(folder)
    return result


async def _rebuild(
    log: EventLog, folder: Path, serving: Store | None, upto: Token | None, report: Report, *, switching: bool
) -> Rebuilt:
    report(Progress("compare", 0, _records(upto or await log.end()), 0.0))
    before, trouble = await asyncio.to_thread(_serving_digest, folder, serving, log.log_id)
    end = await log.end()
    if before is not None and not end.covers(before.token):
        raise _ahead(before.token, end)
    if upto is not None and before is not None and before.token != upto:
        trouble = f"expected the serving store at {upto}, got it at {before.token}"
        before = None
    target = upto or (before.token if before is not None else end)
    path = generations.fresh(folder)
    store = Store.open(path, log_id=log.log_id)
    fold = _Fold(log, store, report, known_dead=before.tables["dead_letters"].rows if before is not None else 0)
    switched = False
    try:
        await fold.until(target, "fold")
        fold.say("digest", target)
        after = await asyncio.to_thread(digest_of, store)
        points = _points(store)
        seconds = fold.seconds
        if switching:
            await fold.to_the_end()
            fold.say("switch", store.token())
            await asyncio.to_thread(store.checkpoint)
            store.close()
            generations.switch(folder, path)
            switched = True
    finally:
        await fold.close()
        if not switched:
            store.close()
            generations.discard(path)
    return Rebuilt(path, target, after, before, trouble, switched, _records(target), points, seconds)


class _Fold:
    """A runner of the new store, and how far it is.

    What the serving store could not fold either is no news: a person has seen it there, and so much poison more is
    let through.
    """

    def __init__(self, log: EventLog, store: Store, report: Report, *, known_dead: int) -> None:
        self._log = log
        self._store = store
        self._report = report
        self._started = time.monotonic()
        self._view = LogUntil(log, Token())
        self._runner = Runner(self._view, store, guard=Guard(DEAD_MOST + known_dead))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    async def close(self) -> None:
        """Let go of what was read ahead."""
        await self._runner.close()

    def say(self, stage: str, target: Token) -> None:
        done = _records(self._store.token())
        self._report(Progress(stage, done, _records(target), done / max(self.seconds, 1e-9)))

    async def until(self, target: Token, stage: str) -> None:
        """Fold exactly up to `target`."""
        self._view.until = target
        while True:
            self.say(stage, target)
            try:
                if not await self._runner.step():
                    break
            except PoisonDominatesError as error:
                raise StoreError(
                    f"expected the log to be foldable, got {error}",
                    hint="the serving store stays; `icecore dead-letters` lists what it could not fold",
                ) from error
        if self._store.token() != target:
            raise _ahead(target, self._store.token())

    async def to_the_end(self) -> None:
        """Fold until little is missing at the log's end, which may move."""
        while True:
            end = await self._log.end()
            await self.until(end.merge(self._store.token()), "catch up")
            if _records(await self._log.end()) - _records(self._store.token()) <= NEAR_ENOUGH:
                return


def _ahead(target: Token, end: Token) -> StoreAhead:
    return StoreAhead(
        f"expected the log to reach {target}, got a log that ends at {end}",
        hint="the log was restored from an older copy or lost its end: bring back the newer log files",
    )


class LogUntil:
    """A log as it was at a token: nothing beyond `until` is there. It is read only."""

    def __init__(self, log: EventLog, until: Token) -> None:
        self._log = log
        self.until = until

    @property
    def partitions(self) -> Mapping[str, int]:
        """As in the log."""
        return self._log.partitions

    @property
    def log_id(self) -> str:
        """As in the log."""
        return self._log.log_id

    @property
    def trouble(self) -> str:
        """As in the log."""
        return self._log.trouble

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Never.

        Raises:
            LogReadOnly: always.
        """
        raise LogReadOnly(f"expected no appends to a view of the log, got {len(records)} records for {stream}")

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """As in the log, but nothing from `until` on."""
        left = self.until.next_offset(place) - start
        if left <= 0:
            return Batch(place, [], start)
        batch = await self._log.read(place, start, records=min(records, left), size=size)
        return batch if len(batch.records) <= left else Batch(place, batch.records[:left], start + left)

    async def end(self) -> Token:
        """The earlier of `until` and the log's end."""
        end = await self._log.end()
        return Token({place: min(n, end.next_offset(place)) for place, n in self.until.as_dict().items()})

    async def start(self) -> Token:
        """As in the log."""
        return await self._log.start()

    async def wait(self, token: Token, within: float) -> bool:
        """Whether the view's end is beyond `token`; it never moves, so there is nothing to wait for."""
        del within
        return not token.covers(await self.end())

    async def close(self) -> None:
        """The log itself stays open."""


def _serving_digest(folder: Path, serving: Store | None, log_id: str) -> tuple[Digest | None, str]:
    """The serving store's digest, or why there is none."""
    try:
        with reading(folder, serving, log_id) as store:
            if store is None:
                return None, "there is no store yet"
            return digest_of(store), ""
    except (StoreDamaged, StoreTooNew) as error:
        return None, error.message


def digest_of(store: Store) -> Digest:
    """The digest of an open store, beside whatever else it does.

    Raises:
        StoreDamaged, StoreError: it cannot be read.
    """
    with contextlib.closing(store.cursor()) as cursor:
        try:
            return digest(cursor)
        except duckdb.Error as error:
            raise told(error, store.path) from error


@contextlib.contextmanager
def reading(folder: Path, serving: Store | None, log_id: str) -> Iterator[Store | None]:
    """The serving store: the open one, or the one in `folder` opened to read; None where there is none."""
    if serving is not None:
        yield serving
        return
    path = generations.current(folder)
    if path is None:
        yield None
        return
    store = Store.open(path, log_id=log_id, readonly=True)
    try:
        yield store
    finally:
        store.close()


def _records(token: Token) -> int:
    return sum(token.as_dict().values())


def _points(store: Store) -> int:
    with contextlib.closing(store.cursor()) as cursor:
        row = cursor.execute("SELECT coalesce(sum(points), 0)::BIGINT FROM run_activity").fetchone()
    return int(row[0]) if row else 0
