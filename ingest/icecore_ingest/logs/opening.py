"""Opens a log by its name: a folder of SQLite files, or topics of a Kafka cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote

from icecore.errors import SettingsError
from icecore.log import EventLog
from icecore_ingest.logs.sqlite import SQLiteLog

_SQLITE = "sqlite://"
_KAFKA = "kafka://"


def is_kafka(where: str | Path) -> bool:
    """Whether a log's name is that of one on Kafka."""
    return isinstance(where, str) and where.startswith(_KAFKA)


def folder_of(where: str | Path) -> Path:
    """The folder of a log that is not on Kafka: a path, or `sqlite:///absolute/path`.

    Raises:
        SettingsError: it is some other URL.
    """
    if isinstance(where, Path):
        return where
    if where.startswith(_SQLITE):
        path = unquote(where.removeprefix(_SQLITE))
        if not path.startswith("/") or "?" in path:
            raise SettingsError(f"expected sqlite:///absolute/folder, got {where!r}")
        return Path(path)
    if "://" in where or not where:
        scheme = where.partition("://")[0]
        raise SettingsError(f"expected a folder, sqlite:///FOLDER or kafka://HOST:PORT, got {scheme!r}")
    return Path(where).expanduser()


async def open_log(where: str | Path, *, readonly: bool = False) -> EventLog:
    """Open the log named `where`.

    Args:
        where: a folder (`/data/log` or `sqlite:///data/log`), or `kafka://HOST:PORT,…?prefix=icecore&…`.
        readonly: never write; appending raises `LogReadOnly`.

    Raises:
        SettingsError: it names no log, or what Kafka needs is missing.
        LogError: the log cannot be opened.
    """
    if isinstance(where, str) and is_kafka(where):
        try:
            from icecore_ingest.logs.kafka import KafkaLog
            from icecore_ingest.logs.kafka_settings import KafkaSettings
        except ImportError as error:
            raise SettingsError("expected aiokafka for a log on Kafka", hint="pip install 'icecore[server]'") from error
        return await KafkaLog.open(KafkaSettings.parse(where), readonly=readonly)
    folder = folder_of(where)
    return await asyncio.to_thread(SQLiteLog.open, folder, readonly=readonly)
