"""Every log passes the one contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from icecore.log import EventLog
from icecore.position import LEDGER, METRICS
from icecore.testing.log_contract import LogContract, Logs
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.logs.sqlite import SEGMENT_SIZE, SQLiteLog


class MemoryLogs(Logs):
    survives = False

    def __init__(self, partitions: int) -> None:
        self._log = MemoryLog({LEDGER: 1, METRICS: partitions})

    async def open(self) -> EventLog:
        return self._log

    def source(self) -> str:
        return ""


class SQLiteLogs(Logs):
    def __init__(self, folder: Path, segment_size: int) -> None:
        self._folder = folder
        self._segment_size = segment_size
        self.opened: list[SQLiteLog] = []

    async def open(self) -> EventLog:
        self.opened.append(SQLiteLog.open(self._folder, segment_size=self._segment_size))
        return self.opened[-1]

    def source(self) -> str:
        return (
            "from pathlib import Path\n"
            "from icecore_ingest.logs.sqlite import SQLiteLog\n"
            "async def open_log():\n"
            f"    return SQLiteLog.open(Path({str(self._folder)!r}), segment_size={self._segment_size})\n"
        )

    def close(self) -> None:
        async def close() -> None:
            for log in self.opened:
                await log.close()

        asyncio.run(close())


class TestMemoryLog(LogContract):
    @pytest.fixture
    def logs(self) -> Logs:
        return MemoryLogs(1)


class TestMemoryLogOfFourPartitions(LogContract):
    @pytest.fixture
    def logs(self) -> Logs:
        return MemoryLogs(4)


class TestSQLiteLog(LogContract):
    @pytest.fixture
    def logs(self, tmp_path: Path) -> Iterator[Logs]:
        logs = SQLiteLogs(tmp_path / "log", SEGMENT_SIZE)
        yield logs
        logs.close()


class TestSQLiteLogOfTinySegments(LogContract):
    """The same while segments are sealed and begun all the time."""

    @pytest.fixture
    def logs(self, tmp_path: Path) -> Iterator[Logs]:
        logs = SQLiteLogs(tmp_path / "log", 128 << 10)
        yield logs
        logs.close()
