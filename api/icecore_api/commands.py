"""The server's commands: `icecore up demo rebuild fsck dead-letters bench` (found through entry points)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from icecore import journal
from icecore.cli.output import json_option, print_json
from icecore.errors import SettingsError
from icecore_api.supervise import log_of
from icecore_api.targets import Remote, Report, target

DATA_DEFAULT = "~/.icecore/data"
AS_OF = "AS_OF.json"
"""In a data folder: it is a copy as of a moment (`icecore_api.replaying`)."""


def _need_server() -> None:
    """Say what is missing before any process is started.

    Raises:
        SettingsError: the server's libraries are not installed.
    """
    missing = [name for name in ("duckdb", "pyarrow", "fastapi", "uvicorn", "aiohttp") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"expected the server's libraries, got none of {', '.join(missing)}", hint="pip install 'icecore[server]'"
        )


def _data_option(function: Any) -> Any:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=DATA_DEFAULT,
        show_default=True,
        envvar="ICECORE_DATA",
        help="The folder that holds everything.",
    )(function)


def _log_option(function: Any) -> Any:
    return click.option(
        "--log",
        default="",
        envvar="ICECORE_LOG",
        help="The log: kafka://HOST:PORT,…; without it, files in the data folder.",
    )(function)


def blobs_option(function: Any) -> Any:
    """Where the bytes of artifacts are."""
    return click.option(
        "--blobs",
        default="",
        envvar="ICECORE_BLOBS",
        help="The bytes of artifacts: s3://BUCKET/PREFIX, az://… or gs://…; without it, files in the data folder.",
    )(function)


def chunks_option(function: Any) -> Any:
    """How large blobs are kept."""
    return click.option(
        "--chunks/--no-chunks",
        default=False,
        show_default=True,
        envvar="ICECORE_BLOB_CHUNKS",
        help="Keep files of 1 MB and more in chunks, each once and compressed; where blobs are in the data folder.",
    )(function)


@click.command(
    epilog="""\b
Examples:
  icecore up
  icecore up --data ./ice --port 0 --json
  icecore up --host 0.0.0.0 --public-host ice.example.org
  icecore up --log kafka://broker:9092
  icecore up --blobs 's3://models/icecore?region=eu-central-1'
  icecore up --with-kafka
  icecore up --data ./as-of-march --read-only
"""
)
@_data_option
@click.option("--host", default="127.0.0.1", show_default=True, envvar="ICECORE_HOST", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8700,
    show_default=True,
    envvar="ICECORE_PORT",
    help="Port; 0 picks a free one.",
)
@_log_option
@blobs_option
@chunks_option
@click.option("--with-kafka", is_flag=True, help="Try Kafka: find or fetch a broker, and keep it in the data folder.")
@click.option("--read-only", is_flag=True, help="Only answer questions: take and fold nothing. For `icecore replay`.")
@click.option("--public-host", multiple=True, help="A name or address clients call it by; * takes any. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help='First line: {"url", "login_url", "api_key"}.')
def up(
    data: Path,
    host: str,
    port: int,
    log: str,
    blobs: str,
    chunks: bool,
    with_kafka: bool,
    read_only: bool,
    public_host: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve a data folder: one command, two processes, until Ctrl-C."""
    _need_server()
    from icecore_api.blobs.opening import choose_blobs
    from icecore_api.supervise import FirstWords, Plan
    from icecore_api.supervise import up as serve

    def ready(words: FirstWords) -> None:
        if as_json:
            line = {"url": words.url, "login_url": words.login_url, "api_key": words.api_key}
            click.echo(json.dumps(line))
        else:
            click.echo(f"icecore serves {data.expanduser()} at {words.url}")
            if words.api_key:
                click.echo(f"  your API key, shown once and saved for this user: {words.api_key}")
            click.echo(f"  log in (once, within a day): {words.login_url}")
            click.echo("  next: `import icecore` in a script, or `icecore demo`; Ctrl-C stops")
        sys.stdout.flush()

    if log and with_kafka:
        raise SettingsError("expected --log or --with-kafka, got both", hint="--with-kafka brings its own broker")
    plan = Plan(data.expanduser().absolute(), host, port, public_host, log, with_kafka, blobs, chunks)
    choose_blobs(plan.data, blobs)  # said here, before any process is started
    if read_only or (plan.data / AS_OF).exists():
        from icecore_api.read_only_serve import refuse_copy
        from icecore_api.read_only_serve import up_read_only as serve

        if not read_only:
            refuse_copy(plan.data)
    journal.begin("supervisor")
    asyncio.run(serve(plan, ready=ready, say=journal.say))


@click.command(
    epilog="""\b
Examples:
  icecore demo
  icecore demo --data /tmp/demo --port 0 --no-stay
"""
)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=None, help="Default: a new folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=None,
    type=click.IntRange(0, 65535),
    help="Port (default: 8700 where it is free); 0 picks a free one.",
)
@click.option("--stay/--no-stay", default=None, help="Go on serving until Ctrl-C (default: on a terminal).")
def demo(data: Path | None, host: str, port: int | None, stay: bool | None) -> None:
    """Start a server, train real models in parallel, kill one, resume it, and look at them."""
    try:
        import sklearn  # noqa: F401 - asked for here to say what is missing
    except ImportError as error:
        raise SettingsError("expected scikit-learn to be installed", hint="pip install 'icecore[demo]'") from error
    from icecore_api.demo.play import play

    folder = data.expanduser().absolute() if data else Path(tempfile.mkdtemp(prefix="icecore-data-"))
    play(folder, host, _free(host, 8700) if port is None else port, stay=sys.stdout.isatty() if stay is None else stay)


def _free(host: str, port: int) -> int:
    """The port where nobody has it, else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        return port


def _anywhere_option(function: Any) -> Any:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="A data folder, served or not; without it, the server at ICECORE_URL.",
    )(function)


@click.command(
    epilog="""\b
Examples:
  icecore rebuild --verify
  icecore rebuild --data ~/.icecore/data
Exit code 1: the serving store did not say what the log says.
"""
)
@_anywhere_option
@click.option("--verify", is_flag=True, help="Only compare; switch nothing.")
@json_option
def rebuild(data: Path | None, verify: bool, as_json: bool) -> int:
    """Fold the log into a new store from the first event, compare digests, and switch to it."""
    with target(data) as where, progress_bar("rebuild") as report:
        if isinstance(where, Remote):
            found = where.run("rebuild", {"verify": verify}, report)
        else:
            found = asyncio.run(_rebuild_folder(where.data, report, verify=verify))
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"{found['records']:,} records, {found['points']:,} points in {found['seconds']:.1f} s "
            f"({found['points_per_second'] / 1e6:.2f} M points/s)"
        )
        click.echo(f"digest {found['digest']}")
        for table in found["differing"]:
            click.echo(f"differs: {table['table']}: serving {table['serving']}, rebuilt {table['rebuilt']}", err=True)
        if found["trouble"]:
            click.echo(f"nothing to compare with: {found['trouble']}", err=True)
        click.echo("the same as the serving store" if found["matches"] else "not the same as the serving store")
        click.echo("switched to the new store" if found["switched"] else "nothing was switched")
    return int(bool(found["differing"]))


async def _rebuild_folder(data: Path, report: Report, *, verify: bool) -> dict[str, Any]:
    from icecore_ingest.logs.opening import open_log
    from icecore_projections.rebuild import rebuild as fold_anew

    log = await open_log(log_of(data), readonly=True)
    try:
        found = await fold_anew(log, data / "store", verify=verify, progress=lambda p: report(p.as_json()))
        return found.as_json()
    finally:
        await log.close()


@click.command(
    epilog="""\b
Examples:
  icecore fsck
  icecore fsck --data ~/.icecore/data --json
Exit code 1: something is wrong; each finding says what, where, and what to do next.
"""
)
@_anywhere_option
@json_option
def fsck(data: Path | None, as_json: bool) -> int:
    """Check every record, offset and table, and this user's spools. Changes nothing."""
    with target(data) as where, progress_bar("fsck") as report:
        if isinstance(where, Remote):
            found = where.run("fsck", {}, report)
        else:
            from icecore_api.checks import check_folder

            found = asyncio.run(check_folder(where.data, log_of(where.data), report)).as_json()
    if as_json:
        print_json(found)
    else:
        for step in found["checked"]:
            mark = "ok" if step["ok"] else "WRONG"
            click.echo(f"{mark:6}{step['what']}: {step['number']:,} {step['unit']} in {step['seconds']:.1f} s")
        if found["digest"]:
            click.echo(f"digest {found['digest']} at {found['token']}")
        for finding in found["findings"]:
            at = f" at {finding['where']}" if finding["where"] else ""
            click.echo(f"{finding['severity']}: {finding['what']}{at}", err=True)
            click.echo(f"    expected {finding['expected']}, found {finding['found']}", err=True)
            if finding["next"]:
                click.echo(f"    next: {finding['next']}", err=True)
    return int(not found["ok"])


@click.command(
    epilog="""\b
Examples:
  icecore dead-letters
  icecore dead-letters --replay --json
"""
)
@click.option("--replay", is_flag=True, help="Try them again through the same folds.")
@json_option
def dead_letters(replay: bool, as_json: bool) -> int:
    """List records that could not be folded, with their positions and reasons."""
    with target(None) as where:
        assert isinstance(where, Remote)
        found = where.client.ask("POST", "dead-letters/replay") if replay else where.client.ask("GET", "dead-letters")
    if as_json:
        print_json(found)
    elif replay:
        click.echo(f"tried {found['tried']}, folded {found['folded']}")
    else:
        from icecore.cli.output import table, terminal

        if not found["dead_letters"]:
            click.echo("none: every record was folded")
            return 0
        rows = [
            [f"{d['stream']}:{d['partition']}:{d['offset']}", d["type"], d["key"], d["reason"]]
            for d in found["dead_letters"]
        ]
        terminal().print(table(["position", "type", "key", "reason"], rows))
    return 0


@click.command(
    epilog="""\b
Examples:
  icecore bench
  icecore bench --scale 0.05 --json
"""
)
@click.option("--scale", default=0.1, show_default=True, help="1.0 is the size of docs/performance.md.")
@json_option
def bench(scale: float, as_json: bool) -> int:
    """Measure this machine: what icecore takes, keeps and answers here (needs the source checkout)."""
    try:
        from benchmarks.__main__ import main as measure
    except ModuleNotFoundError as error:
        raise SettingsError(
            "expected to be in icecore's source checkout, where benchmarks/ is",
            hint="clone it, then: make bench",
        ) from error
    return measure(["--scale", str(scale), *(["--json"] if as_json else [])])


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """A progress bar on stderr, on a terminal only."""
    from rich.progress import Progress

    from icecore.cli.output import terminal

    console = terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def report(told: Mapping[str, Any]) -> None:
            stage = told.get("stage") or told.get("step") or ""
            rate = f" {told['rate']:,.0f} records/s" if told.get("rate") else ""
            progress.update(
                bar, description=f"{what}: {stage}{rate}", completed=told["done"], total=told["total"] or None
            )

        yield report
