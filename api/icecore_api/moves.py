"""The commands that move a log: `icecore log copy`, `icecore backup`, `icecore restore`, `icecore replay`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from icecore.cli.output import json_option, print_json
from icecore.errors import LogTopicMissing, NotFound, SettingsError
from icecore.log import EventLog
from icecore_api.commands import DATA_DEFAULT, progress_bar
from icecore_api.context import Report

FOLDER: Final = click.Path(path_type=Path, file_okay=False)


def _source_options(function: Any) -> Any:
    """`--data` and `--log`: where the log is that is read."""
    data = click.option(
        "--data",
        type=FOLDER,
        default=DATA_DEFAULT,
        show_default=True,
        envvar="ICECORE_DATA",
        help="The data folder, served or not.",
    )
    log = click.option(
        "--log",
        default="",
        envvar="ICECORE_LOG",
        help="Its log, where it is not in the folder: kafka://HOST:PORT,…",
    )
    return data(log(function))


@click.command(
    epilog="""\b
Examples:
  icecore log copy --from ~/.icecore/data/log --to 'kafka://broker:9092?prefix=icecore&partitions=16'
  icecore log copy --from 'kafka://broker:9092' --to sqlite:///srv/icecore/log
  icecore log copy --from 'kafka://old:9092' --to 'kafka://new:9092' --verify --json
Topics that are not there are made. Cut off, the same command goes on where it was. Stop the source's
servers before the last copy: what is accepted after it began is reported as behind.
\b
Exit codes: 0 both hold the same; 1 they differ, or the target holds something else; 2 an address or
option is wrong; 6 a log cannot be read or written: the same command goes on when it can.
"""
)
@click.option("--from", "source", required=True, metavar="LOG", help="A folder, sqlite:///FOLDER or kafka://….")
@click.option("--to", "target", required=True, metavar="LOG", help="Empty, or what an earlier call left.")
@click.option("--verify", is_flag=True, help="Only read both and compare.")
@click.option("--note", type=click.Path(path_type=Path, dir_okay=False), help="Where to note how far it is.")
@json_option
def log_copy(source: str, target: str, verify: bool, note: Path | None, as_json: bool) -> int:
    """Copy a log into another one, of files or on Kafka, and compare the two.

    Ids, server times, actors and payloads stay byte for byte, and so does the order within each key. Offsets stay where
    both have as many partitions.
    """
    with progress_bar("log copy") as report:
        found = asyncio.run(_log_copy(_address(source), _address(target), note, report, verify=verify))
    if as_json:
        print_json(found)
    else:
        if not verify:
            click.echo(f"{found['written']:,} records written in {found['seconds']:.1f} s, {found['already']:,} before")
        for name in ("source", "target"):
            click.echo(f"{name}: {found[name]['records']:,} records, digest {found[name]['digest']}")
        click.echo("both hold the same" if found["matches"] else "they do not hold the same")
        if found["behind"]:
            click.echo(f"the source got {found['behind']:,} more meanwhile: run it again", err=True)
    return int(not found["matches"])


async def _log_copy(source: str, target: str, note: Path | None, report: Report, *, verify: bool) -> dict[str, Any]:
    from icecore_ingest.logs.copying import compare, copy
    from icecore_ingest.logs.opening import open_log

    log = await open_log(source, readonly=True)
    try:
        with _nobody_serves(target, writing=not verify):
            other = await (open_log(target, readonly=True) if verify else _open_target(target))
            try:
                if verify:
                    found = await compare(log, other, report=report)
                else:
                    found = await copy(log, other, note=note or _note(log.log_id, other.log_id), report=report)
            finally:
                await other.close()
    finally:
        await log.close()
    return {"from": source, "to": target, **found.as_json()}


async def _open_target(target: str) -> EventLog:
    """The log to write to; topics that are not there are made, as the address says how."""
    from icecore_ingest.logs.opening import open_log

    try:
        return await open_log(target)
    except LogTopicMissing:
        from icecore_ingest.logs import kafka_topics
        from icecore_ingest.logs.kafka_settings import KafkaSettings

        await kafka_topics.create(KafkaSettings.parse(target))
        await kafka_topics.create_derived(KafkaSettings.parse(target))
        return await open_log(target)


def _address(where: str) -> str:
    """The log of a data folder, where one is named instead of its log."""
    from icecore_api.supervise import log_of

    folder = Path(where).expanduser()
    if "://" not in where and not (folder / "LOG_ID").exists():
        if (folder / "LOG").is_file() or (folder / "log" / "LOG_ID").is_file():
            return str(log_of(folder))
        return str(folder)
    return where


def _note(source_id: str, target_id: str) -> Path:
    """Where this user's copies are noted."""
    from icecore.settings import config_dir

    name = hashlib.sha256(f"{source_id} {target_id}".encode()).hexdigest()[:32]
    return config_dir() / "copies" / f"{name}.json"


@contextlib.contextmanager
def _nobody_serves(target: str, *, writing: bool) -> Iterator[None]:
    """Hold the data folder that a target's log lies in, so that no server writes to it meanwhile.

    Raises:
        Unavailable: one serves it.
    """
    from icecore_api.supervise import Lock
    from icecore_ingest.logs.opening import folder_of, is_kafka

    if not writing or is_kafka(target):
        yield
        return
    data = folder_of(target).absolute().parent
    if not (data / "lock").exists():
        yield
        return
    with contextlib.closing(Lock(data)) as lock:
        lock.write({"pid": "this", "url": "a copy into its log"})
        yield


@click.command(
    epilog="""\b
Examples:
  icecore backup /mnt/backup/icecore
  icecore backup /mnt/backup/icecore --data /srv/icecore --json
  icecore backup /mnt/backup/icecore --log kafka://broker:9092
  icecore backup /mnt/backup/icecore --verify
\b
Exit codes: 0 done, or every file is as it was written; 1 a file of the backup is damaged, or the folder
holds something else; 5 no such data folder or backup; 6 the log cannot be read.
"""
)
@click.argument("folder", metavar="DIR", type=FOLDER)
@_source_options
@click.option("--verify", is_flag=True, help="Only read every file of the backup and compare checksums.")
@json_option
def backup(folder: Path, data: Path, log: str, verify: bool, as_json: bool) -> int:
    """Back up the log, blobs and keys into DIR while they are served; again, only what is new."""
    from icecore_api import backup as backups

    folder = folder.expanduser().absolute()
    with progress_bar("backup") as report:
        if verify:
            found = dict(backups.told(folder, backups.check(folder, report)))
        else:
            found = asyncio.run(_backup(folder, data.expanduser().absolute(), log, report))
    if as_json:
        print_json(found)
        return int(not found.get("ok", True))
    if verify:
        for damage in found["damages"]:
            click.echo(f"damaged: {damage['file']}: {damage['problem']}", err=True)
        click.echo(f"{found['pieces']:,} pieces and {found['files']:,} files, {found['records']:,} records")
        click.echo("every file is as it was written" if found["ok"] else "damaged")
    else:
        click.echo(
            f"{found['new_records']:,} new records of {found['records']:,}, {found['new_files']:,} new files, "
            f"{found['new_bytes'] / 1e6:,.1f} MB written in {found['seconds']:.1f} s"
        )
        click.echo(f"{folder} reaches {found['token'] or 'nothing yet'}")
    return int(not found.get("ok", True))


async def _backup(folder: Path, data: Path, where: str, report: Report) -> dict[str, Any]:
    from icecore_api.backup import backup as make
    from icecore_ingest.logs.opening import open_log

    log = await open_log(_log_at(data, where), readonly=True)
    try:
        return await make(log, folder, data, report=report)
    finally:
        await log.close()


def _log_at(data: Path, where: str) -> str | Path:
    """The log to read.

    Raises:
        NotFound: the folder has none.
    """
    from icecore_api.supervise import log_of

    found = where or log_of(data)
    if isinstance(found, Path) and not found.is_dir():
        raise NotFound(f"expected a data folder with a log in it, got {data}", hint="name another with --data")
    return found


@click.command(
    epilog="""\b
Examples:
  icecore restore /mnt/backup/icecore --data /srv/icecore
  icecore restore /mnt/backup/icecore --data ./again --json
Then `icecore up --data /srv/icecore` folds the log anew, and `icecore sync` sends what clients still hold.
\b
Exit codes: 0 done; 1 DIR holds something else than an older state of the same log; 5 no backup there;
6 a file of the backup is damaged: it is named, and nothing was written.
"""
)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--data", type=FOLDER, required=True, help="The data folder to make: absent, empty, or older.")
@json_option
def restore(folder: Path, data: Path, as_json: bool) -> None:
    """Make a data folder from the backup in DIR, after checking every byte of it."""
    from icecore_api.restoring import restore as bring_back

    data = data.expanduser().absolute()
    with progress_bar("restore") as report:
        found = asyncio.run(bring_back(folder.expanduser().absolute(), data, report=report))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['records']:,} records and {found['files']:,} files in {found['seconds']:.1f} s")
    click.echo(f"next: icecore up --data {data}")


@click.command(
    epilog="""\b
Examples:
  icecore replay --to 2026-03-03T14:00:00Z --into ./as-of-march
  icecore replay --to ledger:0:512,metrics:0:90211 --into ./copy --json
  icecore up --data ./as-of-march --read-only
\b
Exit codes: 0 done; 1 the folder holds something; 2 the time or position cannot be read, or is beyond
the log's end; 5 no such data folder; 6 the log cannot be read.
"""
)
@click.option("--to", required=True, metavar="TIME|POSITION", help="A time (UTC unless it says otherwise), or a token.")
@click.option("--into", type=FOLDER, required=True, help="The folder to make: absent or empty.")
@_source_options
@json_option
def replay(to: str, into: Path, data: Path, log: str, as_json: bool) -> None:
    """Make a second data folder as of a moment: its log up to there, and a store folded from it."""
    into, data = into.expanduser().absolute(), data.expanduser().absolute()
    if into == data:
        raise SettingsError("expected another folder than --data to replay into, got the same", hint="name a new one")
    with progress_bar("replay") as report:
        found = asyncio.run(_replay(to, into, data, log, report))
    if as_json:
        print_json({"data": str(into), **found})
        return
    click.echo(f"{found['records']:,} records as of {found['time']}: {found['source'] or 'nothing yet'}")
    click.echo(f"digest {found['digest']}")
    click.echo(f"next: icecore up --data {into} --read-only")


async def _replay(to: str, into: Path, data: Path, where: str, report: Report) -> dict[str, Any]:
    from icecore_api.replaying import replay as make
    from icecore_ingest.logs.opening import open_log

    log = await open_log(_log_at(data, where), readonly=True)
    try:
        return (await make(log, to, into, report=report)).as_json()
    finally:
        await log.close()
