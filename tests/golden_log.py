"""Golden logs: one for each version of each event, in wire form, as the release that brought it wrote them.

`python tests/golden_log.py` writes down what the logs fold to that were not folded before. It changes nothing that is
written down already; tests/golden/README.md says how to add one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from icecore.codec import decode_envelope, frames
from icecore.events import EVENTS, NEWEST, Envelope
from icecore.log import Record
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.identities import Identities
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store

FOLDER: Final = Path(__file__).parent / "golden" / "log"
SAID: Final = FOLDER / "folded.json"
NAMES: Final = sorted(path.stem for path in FOLDER.glob("*.ndjson"))


def versions() -> set[tuple[str, int]]:
    """Every version of every event that was ever written: all up to the newest."""
    newest = {name: cls.VERSION for name, cls in NEWEST.items()}
    return {(name, v) for name, last in newest.items() for v in range(1, last + 1)} | set(EVENTS)


def version_of(name: str) -> tuple[str, int]:
    """The event and version that a file is named for: TYPE.vN.

    Raises:
        ValueError: it is named for none.
    """
    found = re.fullmatch(r"(.+)\.v(\d+)", name)
    if found is None:
        raise ValueError(f"expected a name like run.started.v1, got {name!r}")
    return found[1], int(found[2])


def load(name: str) -> list[tuple[Envelope, bytes]]:
    """The events of a log, in order."""
    body = (FOLDER / f"{name}.ndjson").read_bytes()
    return [(decode_envelope(line), payload) for line, payload in frames(body)]


def fold(name: str, path: Path, *, batch: int = 5_000) -> dict[str, Any]:
    """What a log folds to: the digest of a store, what was not applied, and the identities."""

    async def work() -> dict[str, Any]:
        log = MemoryLog()
        for envelope, payload in load(name):
            subject = orjson.loads(payload)
            key = next(subject[field] for field in ("artifact", "run", "user", "scope", "plan") if field in subject)
            record = Record(key, envelope, payload)
            await log.append(NEWEST[envelope.type].STREAM, [record])
        identities = msgspec.to_builtins((await Identities.open(log)).state)
        with contextlib.closing(Store.open(path, log_id=log.log_id)) as store:
            await Runner(log, store, records=batch).catch_up()
            digest = digest_of(store)
            left = {table: digest.tables[table].rows for table in ("dead_letters", "rejections", "skipped")}
            return {"digest": digest.hex, **left, "identities": {k: v for k, v in identities.items() if v}}

    return asyncio.run(work())


def said() -> dict[str, Any]:
    """What was written down, by log."""
    found: dict[str, Any] = orjson.loads(SAID.read_bytes()) if SAID.exists() else {}
    return found


def holds(found: object, recorded: object) -> bool:
    """Whether all that was recorded is still so; what later releases know besides does not matter."""
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        return all(key in found and holds(found[key], value) for key, value in recorded.items())
    return found == recorded


def write_new() -> list[str]:
    """Write down what logs without a record fold to; their names."""
    known = said()
    new = [name for name in NAMES if name not in known]
    for name in new:
        with tempfile.TemporaryDirectory() as folder:
            known[name] = fold(name, Path(folder) / "store.duckdb")
    SAID.write_bytes(orjson.dumps(known, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    return new


if __name__ == "__main__":
    for one in write_new():
        print(f"{one}: {said()[one]}")
