"""Checks everything a data folder holds, and says of each finding what, where, and what to do next.

1. The log: every checksum, every offset, by the log's own check.
2. The store: it opens, is of this log, is not ahead of it, and every block of it can be read.
3. Sequence numbers: every record read is applied once or counted as a duplicate; gaps are noted.
4. The rollup: it says of every series what the points under it say.
5. A rebuild: the store says what the log says.
6. The spools of clients on this machine: every frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import duckdb

from icecore.errors import IcecoreError, LogError
from icecore.log import EventLog
from icecore.log import Finding as LogFinding
from icecore.position import Token
from icecore.segments import Report as SpoolReport
from icecore_projections import rebuild as rebuilding
from icecore_projections.dedupe import Intervals
from icecore_projections.digest import folded_token
from icecore_projections.failures import told
from icecore_projections.store import Store

Severity = Literal["error", "note"]

LogCheck = Callable[[Callable[[int, int], None]], Iterable[LogFinding]]
"""A log's own check of its files; told where to report (records checked, records in all)."""
SpoolCheck = Callable[[], Iterable[SpoolReport]]

GAPS_NAMED: Final = 100
"""Notes of gaps in one report; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be (`error`), or that a person may want to know (`note`)."""

    severity: Severity
    what: str
    where: str
    expected: str
    found: str
    next: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One step of the check: how much it looked at."""

    what: str
    number: int
    unit: str
    seconds: float
    ok: bool


@dataclass(slots=True)
class Report:
    """What a check found. `ok` while there is no error; notes do not count."""

    findings: list[Finding] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    digest: str = ""
    """Of the store, at `token`; empty where there was none to read."""
    token: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For `--json` and the API."""
        return {
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "checked": [asdict(step) for step in self.checked],
            "digest": self.digest or None,
            "token": self.token,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a check is."""

    step: str
    done: int
    total: int
    unit: str

    def as_json(self) -> dict[str, Any]:
        """For an API answer."""
        return asdict(self)


async def fsck(
    log: EventLog,
    folder: Path,
    *,
    serving: Store | None = None,
    log_check: LogCheck | None = None,
    spools: SpoolCheck | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Check log, store and spools; nothing is changed, and what can be checked after a finding is.

    Args:
        log: opened to read or to write.
        folder: DATA/store.
        serving: the open store where this process serves; otherwise the one in `folder` is opened to read.
        log_check: the log's own check of its files; without one, every record is read.
        spools: the client's check of its spools; without one they are left out.
        progress: told how far it is; what it raises ends the check.
    """
    report = Report()
    async with _step(report, "log", "records") as step:
        await _check_log(report, log, log_check, step, progress)
    end = None
    with contextlib.suppress(LogError):  # the step above has said so
        end = await log.end()
    if end is not None:
        await _check_store(report, log, folder, serving, end, progress)
    if spools is not None:
        async with _step(report, "spools", "frames") as step:
            await asyncio.to_thread(_check_spools, report, spools, step)
    return report


@dataclass(slots=True)
class _Step:
    number: int = 0


@contextlib.asynccontextmanager
async def _step(report: Report, what: str, unit: str) -> AsyncIterator[_Step]:
    """Time one step, and make an error of it a finding."""
    step, started = _Step(), time.monotonic()
    errors = _errors(report)
    try:
        yield step
    except IcecoreError as error:
        report.findings.append(_of_error(what, error))
    ok = _errors(report) == errors
    report.checked.append(Checked(what, step.number, unit, round(time.monotonic() - started, 3), ok))


def _errors(report: Report) -> int:
    return sum(finding.severity == "error" for finding in report.findings)


def _apart(sentence: str) -> tuple[str, str]:
    """X and Y of "expected X, got Y"."""
    expected, _, got = sentence.removeprefix("expected ").partition(", got")
    return expected, got.removeprefix(":").strip()


def _of_error(what: str, error: IcecoreError) -> Finding:
    """An error's sentence is "expected X, got Y": taken apart again."""
    expected, found = _apart(error.message)
    position = ":".join(str(error.facts[name]) for name in ("stream", "partition", "offset") if name in error.facts)
    where = " in ".join(filter(None, (position, str(error.facts.get("file", "")))))
    return Finding("error", what, where, expected, found or error.message, error.hint)


# ------------------------------------------------------------------------------------------------------ 1. the log


async def _check_log(
    report: Report, log: EventLog, check: LogCheck | None, step: _Step, progress: Callable[[Progress], None]
) -> None:
    if check is None:
        await _read_log(report, log, step, progress)
        return

    def say(done: int, total: int) -> None:
        step.number = done
        progress(Progress("log", done, total, "records"))

    for found in await asyncio.to_thread(lambda: list(check(say))):
        where = found.file
        if found.place is not None:
            offset = "" if found.offset is None else f":{found.offset}"
            where = f"{found.place.stream}:{found.place.partition}{offset} in {found.file}"
        expected, got = _apart(found.problem)
        if not got:
            expected, got = "a whole log", found.problem
        report.findings.append(Finding("error", "log", where, expected, got, _RESTORE))


_RESTORE: Final = (
    "restore this file of the log from a backup or a replica; the log is the only place of its records, and no "
    "other file can bring them back"
)


async def _read_log(report: Report, log: EventLog, step: _Step, progress: Callable[[Progress], None]) -> None:
    """Read every record through the log's interface: offsets must be dense, and every record readable."""
    start, end = await log.start(), await log.end()
    total = sum(end.as_dict().values()) - sum(start.as_dict().values())
    for place, last in sorted(end.as_dict().items()):
        offset = start.next_offset(place)
        while offset < last:
            try:
                batch = await log.read(place, offset)
            except LogError as error:
                report.findings.append(_of_error("log", error))
                offset += 1
                continue
            expected = range(offset, offset + len(batch.records))
            if not batch.records or [record.position.offset for record in batch.records] != list(expected):
                where = f"{place.stream}:{place.partition}:{offset}"
                report.findings.append(
                    Finding("error", "log", where, "dense offsets", "a hole or another order", _RESTORE)
                )
                break
            step.number += len(batch.records)
            offset = batch.next_offset
            progress(Progress("log", step.number, total, "records"))


# ----------------------------------------------------------------------------------------------------- 2. the store


async def _check_store(
    report: Report,
    log: EventLog,
    folder: Path,
    serving: Store | None,
    end: Token,
    progress: Callable[[Progress], None],
) -> None:
    progress(Progress("store", 0, 1, "stores"))
    to_fold = to_compare = False
    async with _step(report, "store", "stores") as step:
        with rebuilding.reading(folder, serving, log.log_id) as store:
            if store is None:
                report.findings.append(_no_store(folder, end))
                to_fold = report.findings[-1].severity == "note"
            else:
                step.number = 1
                await _check_open_store(report, log, store)
                to_fold = to_compare = True
    if not to_fold:
        return
    if not next(done for done in report.checked if done.what == "log").ok:
        report.findings.append(_NOT_COMPARED)
        return
    async with _step(report, "rebuild", "records") as step:

        def say(at: rebuilding.Progress) -> None:
            step.number = max(step.number, at.done)
            progress(Progress(f"rebuild: {at.stage}", at.done, at.total, "records"))

        rebuilt = await rebuilding.rebuild(log, folder, serving=serving, verify=True, progress=say)
        if to_compare:
            report.findings.extend(_differences(rebuilt))
        report.digest, report.token = (rebuilt.serving or rebuilt.digest).hex, str(rebuilt.token)


async def _check_open_store(report: Report, log: EventLog, store: Store) -> None:
    await asyncio.to_thread(store.verify)
    folded = store.token()
    end = await log.end()  # asked for later: a serving store moves on meanwhile
    if not end.covers(folded):
        store.check(end)
    await store.check_log(log)
    await asyncio.to_thread(_check_tables, report, store, end)


_NOT_COMPARED: Final = Finding(
    "note", "rebuild", "the store", "a comparison with the log", "none: the log is damaged", "repair the log first"
)


def _no_store(folder: Path, end: Token) -> Finding:
    severity: Severity = "error" if (folder / "CURRENT").exists() else "note"
    return Finding(
        severity,
        "store",
        str(folder),
        "a store file named by CURRENT",
        f"none, and a log that ends at {end or 'its beginning'}",
        "`icecore up` or `icecore rebuild` makes it from the log",
    )


def _differences(rebuilt: rebuilding.Rebuilt) -> Iterable[Finding]:
    if rebuilt.serving is None:
        yield Finding(
            "error", "rebuild", str(rebuilt.token), "a store to compare", rebuilt.trouble, "`icecore rebuild`"
        )
        return
    for table in rebuilt.differing:
        serving, right = rebuilt.serving.tables.get(table), rebuilt.digest.tables.get(table)
        yield Finding(
            "error",
            "rebuild",
            f"table {table} at {rebuilt.token}",
            f"{right.rows} rows with digest {right.hex}, as the log says" if right else "no such table",
            f"{serving.rows} rows with digest {serving.hex}" if serving else "no such table",
            "`icecore rebuild` puts a new store in its place; keep the old one if you want to find the cause",
        )


def _check_tables(report: Report, store: Store, end: Token) -> None:
    """What the store says about itself, seen in one transaction."""
    with contextlib.closing(store.cursor()) as con:
        try:
            con.begin()
            _check_sequences(report, con)
            _check_rollups(report, con)
            _note_counts(report, con, folded_token(con), end)
            con.rollback()
        except duckdb.Error as error:
            raise told(error, store.path) from error


# ---------------------------------------------------------------------------------------------- 3. sequence numbers


def _check_sequences(report: Report, con: duckdb.DuckDBPyConnection) -> None:
    """Every record read was applied (its number is in an interval) or dropped as a duplicate, and counted."""
    read = {
        (stream, part): n for stream, part, n in con.execute("SELECT stream, part, next_offset FROM offsets").fetchall()
    }
    accounted = dict.fromkeys(read, 0)
    gaps = 0
    rows = con.execute(
        "SELECT stream, part, producer, key, intervals, duplicates FROM producers ORDER BY ALL"
    ).fetchall()
    for stream, part, producer, key, text, duplicates in rows:
        where = f"{stream}:{part} producer {producer} of {key}"
        intervals = Intervals.loads(text)
        if not _well_formed(intervals.pairs()):
            report.findings.append(
                Finding("error", "sequence numbers", where, "sorted, separate intervals", text, "`icecore rebuild`")
            )
            continue
        applied = sum(last - first + 1 for first, last in intervals.pairs())
        accounted[stream, part] = accounted.get((stream, part), 0) + applied + duplicates
        missing = intervals.gaps()
        gaps += bool(missing)
        if missing and gaps <= GAPS_NAMED:
            report.findings.append(_gap(where, missing))
    if gaps > GAPS_NAMED:
        report.findings.append(
            Finding("note", "sequence numbers", "producers", "no gaps", f"{gaps - GAPS_NAMED} more with gaps", _SYNC)
        )
    for (stream, part), n in sorted(read.items()):
        if accounted[stream, part] != n:
            report.findings.append(
                Finding(
                    "error",
                    "sequence numbers",
                    f"{stream}:{part}",
                    f"{n} records read, each applied once or counted as a duplicate",
                    f"{accounted[stream, part]} accounted for",
                    "`icecore rebuild`",
                )
            )


def _well_formed(pairs: list[tuple[int, int]]) -> bool:
    bounds = [bound for pair in pairs for bound in pair]
    apart = all(first > last + 1 for (_, last), (first, _) in itertools.pairwise(pairs))
    return apart and bounds == sorted(bounds) and (not bounds or bounds[0] >= 0)


_SYNC: Final = "if the machine that logged it is still there, run `icecore sync` on it: a gap heals when its part comes"


def _gap(where: str, missing: list[tuple[int, int]]) -> Finding:
    total = sum(last - first + 1 for first, last in missing)
    named = ", ".join(f"{first}-{last}" for first, last in missing[:5]) + (" …" if len(missing) > 5 else "")
    return Finding("note", "sequence numbers", where, "no gaps", f"{total} events have not come: {named}", _SYNC)


# ------------------------------------------------------------------------------------------------------ 4. rollups

_ROLLUP: Final = """
SELECT coalesce(c.series, r.series), c.n, r.n FROM
  (SELECT series, count(*) n, count(*) FILTER (isnan(value)) nans, min(value + 0.0) FILTER (NOT isnan(value)) least,
          max(value + 0.0) FILTER (NOT isnan(value)) most FROM {kind}_cold GROUP BY series) c
  FULL JOIN
  (SELECT series, sum(n)::BIGINT n, sum(nans)::BIGINT nans, min(least) least, max(most) most
     FROM {kind}_rollup GROUP BY series) r
  ON c.series = r.series
WHERE (c.n, c.nans, c.least, c.most) IS DISTINCT FROM (r.n, r.nans, r.least, r.most)
LIMIT 20
"""


def _check_rollups(report: Report, con: duckdb.DuckDBPyConnection) -> None:
    """The rollup is not in the digest, since pieces depend on batches: it is compared with the points under it."""
    for kind in ("points", "system"):
        for series, points, rolled in con.execute(_ROLLUP.format(kind=kind)).fetchall():
            report.findings.append(
                Finding(
                    "error",
                    "rollup",
                    f"{kind}_rollup, series {series}",
                    f"the count, least and most of {points} points",
                    f"another summary, of {rolled} points",
                    "`icecore rebuild`",
                )
            )


_COUNTS: Final = (
    ("dead_letters", "records that could not be folded", "`icecore dead-letters` lists them"),
    ("rejections", "events that were decided against", "`icecore log show POSITION` shows one"),
)


def _note_counts(report: Report, con: duckdb.DuckDBPyConnection, token: Token, end: Token) -> None:
    """What is not wrong, but a person may want to know."""
    for table, what, step in _COUNTS:
        row = con.execute(f"SELECT count(*), min(reason) FROM {table}").fetchone()  # noqa: S608 - a fixed list
        if row and row[0]:
            report.findings.append(Finding("note", table, f"table {table}", "none", f"{row[0]} {what}: {row[1]}", step))
    for kind, version, n in con.execute("SELECT type, v, sum(n)::BIGINT FROM skipped GROUP BY ALL").fetchall():
        found = f"{n} events of {kind} v{version}"
        step = "a newer icecore knows them: `icecore rebuild` after an upgrade"
        report.findings.append(Finding("note", "skipped", "table skipped", "known types only", found, step))
    behind = sum(end.as_dict().values()) - sum(token.as_dict().values())
    if behind > 0:
        found = f"{behind} records behind, at {token}"
        report.findings.append(Finding("note", "store", str(end), "folded to the log's end", found, "it catches up"))


# ------------------------------------------------------------------------------------------------------- 6. spools


def _check_spools(report: Report, spools: SpoolCheck, step: _Step) -> None:
    for spool in spools():
        step.number += spool.frames
        where = f"{spool.folder} of {spool.run or 'an unknown run'}"
        if spool.corrupt:
            found = f"{spool.corrupt} damaged places among {spool.frames} whole frames"
            again = "what is whole is sent by `icecore sync`; the damaged frames are lost, and the run shows the gap"
            report.findings.append(Finding("error", "spool", where, "frames with their checksums", found, again))
        if spool.refused:
            found = f"{spool.refused} events that the server refused"
            again = f"read {spool.folder}/refused: each has the server's words"
            report.findings.append(Finding("note", "spool", where, "none refused", found, again))
        if spool.pending and not spool.alive:
            found = f"{spool.pending} events of a process that has ended"
            report.findings.append(Finding("note", "spool", where, "all sent", found, "`icecore sync`"))


__all__ = ["Checked", "Finding", "LogCheck", "Progress", "Report", "SpoolCheck", "fsck"]
