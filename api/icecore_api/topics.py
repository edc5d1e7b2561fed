"""`icecore topics`: make the topics of a log on Kafka, and check that they keep every record."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from icecore.cli.output import examples, json_option, print_json
from icecore.errors import SettingsError

if TYPE_CHECKING:
    from icecore_ingest.logs.kafka_settings import KafkaSettings


def _log_option(function: Any) -> Any:
    function = click.option(
        "--allow-single-replica", is_flag=True, help="One replica is enough: a lost disk is then a lost log."
    )(function)
    return click.option(
        "--log",
        required=True,
        envvar="ICECORE_LOG",
        help="The log: kafka://HOST:PORT,…?prefix=icecore&partitions=16; secrets come from ICECORE_KAFKA_*.",
    )(function)


@click.group()
def topics() -> None:
    """Make and check the topics of a log on Kafka."""


@topics.command(
    epilog=examples(
        "icecore topics create --log kafka://a:9092,b:9092,c:9092",
        "icecore topics create --log 'kafka://localhost:9092?partitions=4' --allow-single-replica",
    )
)
@_log_option
@json_option
def create(log: str, allow_single_replica: bool, as_json: bool) -> int:
    """Make the topics that are missing, so that Kafka keeps every record; those that are there stay as they are."""
    from icecore_ingest.logs import kafka_topics

    settings = _settings(log, single=allow_single_replica)
    made = asyncio.run(kafka_topics.create(settings)) + asyncio.run(kafka_topics.create_derived(settings))
    names = [*settings.topics.values(), settings.summaries_topic]
    if as_json:
        print_json({"log": str(settings), "created": made, "topics": names})
    else:
        for topic in names:
            click.echo(f"{'created' if topic in made else 'there already:'} {topic}")
        click.echo(f"next: icecore up --log '{settings}'")
    return 0


@topics.command(
    epilog=examples(
        "icecore topics check --log kafka://a:9092,b:9092,c:9092",
        "ICECORE_LOG=kafka://a:9092 icecore topics check --json",
    )
    + "\n\nExit code 1: a setting could lose records; each line says which, what it is and what it must be."
)
@_log_option
@json_option
def check(log: str, allow_single_replica: bool, as_json: bool) -> int:
    """Compare the topics' settings with what a log needs. A server refuses to start on topics that differ."""
    from icecore_ingest.logs import kafka_topics

    settings = _settings(log, single=allow_single_replica)
    found = asyncio.run(kafka_topics.check(settings))
    if as_json:
        drift = [
            {"topic": one.topic, "setting": one.setting, "found": one.found, "expected": one.expected} for one in found
        ]
        print_json({"log": str(settings), "ok": not found, "drift": drift})
    else:
        for one in found:
            click.echo(str(one))
        if not found:
            click.echo(f"every record is kept: {', '.join(settings.topics.values())}")
    return int(bool(found))


def _settings(log: str, *, single: bool) -> KafkaSettings:
    try:
        from icecore_ingest.logs.kafka_settings import KafkaSettings
    except ImportError as error:
        raise SettingsError("expected aiokafka for a log on Kafka", hint="pip install 'icecore[server]'") from error
    settings = KafkaSettings.parse(log)
    if not single or settings.single_replica:
        return settings
    return replace(settings, single_replica=True, replicas=1)
