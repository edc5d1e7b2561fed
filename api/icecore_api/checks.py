"""`fsck` of a data folder, with the parts it needs from every room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icecore import segments
from icecore.settings import Settings
from icecore_ingest.logs.opening import folder_of, is_kafka, open_log
from icecore_ingest.logs.verify import verify
from icecore_projections.fsck import Report, fsck
from icecore_projections.store import Store


async def check_folder(
    data: Path, where: str | Path, report: Callable[[Mapping[str, Any]], None], *, serving: Store | None = None
) -> Report:
    """Check the log, the store and this user's spools. Changes nothing.

    Args:
        data: the data folder.
        where: its log; an embedded one is also checked file by file, a broker checks its own.
        report: told how far it is, as JSON.
        serving: the open store, where this process serves the folder.

    Raises:
        LogError: there is no log to check.
    """
    log = await open_log(where, readonly=True)
    try:
        return await fsck(
            log,
            data / "store",
            serving=serving,
            log_check=None if is_kafka(where) else lambda progress: verify(folder_of(where), progress),
            spools=lambda: segments.verify(Settings.load().dir),
            progress=lambda progress: report(progress.as_json()),
        )
    finally:
        await log.close()
