# ruff: noqa: INP001 - a script beside the documents it makes
"""Makes the documents that follow from the code: `make docs`. With --check, only says whether they are true.

docs/events.md from icecore.events, docs/limits.md from icecore.limits, docs/settings.md from icecore.settings,
docs/cli.md from the command line's own help.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import textwrap
import typing
from pathlib import Path

import click
import msgspec

from icecore import codec, events, limits

HERE = Path(__file__).parent
MADE = "<!-- made by `make docs`; do not edit -->\n"


REQUEST = (
    "```sh\n"
    "envelope='" + '{"id":"01936b1e-0000-7000-8000-000000000000","type":"run.started","v":1,"seq":0,'
    '"ts_client":1763719200000,"producer":"6f1f6c3e-0000-4000-8000-000000000000"}' + "'\n"
    "payload='" + '{"run":"owner/hello/r1","started_ts":1763719200000,"config":{"lr":0.1}}' + "'\n"
    """printf '%s\\n%s\\n' "$envelope" "$payload" |
  curl -sS --data-binary @- -H "Authorization: Bearer $ICECORE_API_KEY" $ICECORE_URL/api/v1/events
```"""
)


FOLLOW = """\
import asyncio, json, sys
from aiokafka import AIOKafkaConsumer


async def follow(servers: str, topic: str) -> None:
    async with AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        async for record in consumer:
            envelope = json.loads(dict(record.headers).get("icecore-envelope", b'{"type": "foreign", "v": 0}'))
            event = json.loads(record.value)
            print(record.partition, record.offset, envelope["type"], envelope["v"], event.get("run"), flush=True)


asyncio.run(follow(*sys.argv[1:]))  # for example: localhost:9092 icecore.metrics
"""

LATEST = """\
import asyncio, json, sys
from aiokafka import AIOKafkaConsumer


async def latest(servers: str, topic: str) -> None:
    async with AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        async for record in consumer:
            run = json.loads(record.value) if record.value else {"state": "deleted", "summary": {}}
            print(record.key.decode(), run["state"], json.dumps(run["summary"]), flush=True)


asyncio.run(latest(*sys.argv[1:]))  # for example: localhost:9092 icecore.run-summaries
"""

TOPICS = f"""\
## Topics on Kafka

With a log on Kafka (`--log kafka://…`) every program can read the events. `PREFIX` is `icecore`, unless the log's
address says another.

| topic | partitions | key | value | kept |
|---|---|---|---|---|
| `PREFIX.ledger` | 1: a total order | the run's path or the user's name | the payload, as it was received | for ever |
| `PREFIX.metrics` | 16, or as the log's address says; by murmur2 of the key | the run's path | the same | for ever |
| `PREFIX.run-summaries` | as many as of metrics | the run's path | JSON as below; none: it was deleted | compacted |

**Events.** The envelope is the header `icecore-envelope`, as JSON. A record's partition and offset are its position:
`metrics:3:120` in a token means everything of partition 3 before offset 120. A client that had no answer sends its
events again, so count each (`producer`, `seq`) of a topic once. Records of unknown types are to be passed over.

```python
{FOLLOW}```

**Run summaries.** The latest of every run, published by the store a second or two after it was folded (some seconds
where thousands of runs change), at least once: `run`, `name`, `group`, `job_type`, `tags`, `user`, `state` (running,
finished, failed or killed), `exit_code`, `created_ts`, `started_ts`, `finished_ts`, `heard_ts` (when anything last
came; all in ms since 1970 UTC), `config`, `summary` by dotted key, and `positions`: the token at which this was so. A
running run that was not heard of for long has crashed. Of a run whose JSON would be over 900,000 bytes `config`, then
`summary` is left out, and named in `left_out`. A restored run has a value again. `icecore topics create` makes the
topic; without it nothing is published. If you deleted and made it again, remove `DATA/run/summaries.json` and restart
the store: all runs are published anew.

```python
{LATEST}```"""


def events_page() -> str:
    """Every event with its fields."""
    parts = [
        "# Events",
        MADE,
        "An event is two lines: an envelope and a payload. `POST /api/v1/events` takes such pairs.",
        REQUEST,
        "## Envelope",
        _fields(events.Envelope),
        "## Blocks\n\n" + textwrap.dedent(inspect.getdoc(codec) or ""),
    ]
    for (name, version), cls in sorted(events.EVENTS.items()):
        source = "clients and the server" if cls.FROM_CLIENTS else "the server's commands only"
        parts += [
            f"## {name} v{version}",
            f"{inspect.getdoc(cls)}\n\nStream `{cls.STREAM}`; made by {source}.",
            _fields(cls),
        ]
    return "\n\n".join([*parts, TOPICS]) + "\n"


def _fields(cls: type[msgspec.Struct]) -> str:
    told = _told(cls)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(cls):
        if field.name == "unknown":
            continue
        default = _default(field)
        kind = str(field.type).replace("typing.", "") if not isinstance(field.type, type) else field.type.__name__
        kind = str(field.type).replace("typing.", "") if typing.get_args(field.type) else kind
        cells = (
            f"`{field.name}`",
            f"`{kind}`".replace("|", "\\|"),
            f"`{default}`" if default else "",
            told.get(field.name, ""),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        return repr(field.default)
    return "" if field.default_factory is msgspec.NODEFAULT else repr(field.default_factory())


def _told(cls: type[msgspec.Struct]) -> dict[str, str]:
    """The strings under the fields of a class and its bases."""
    told: dict[str, str] = {}
    for base in cls.__mro__[::-1]:
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        lines = inspect.getsource(base).splitlines()
        for above, line in itertools.pairwise(lines):
            if line.strip().startswith('"""') and line.strip().endswith('"""') and ":" in above and "def " not in above:
                name = above.strip().split(":")[0]
                if name.isidentifier():
                    told[name] = line.strip().strip('"').strip()
    return told


def limits_page() -> str:
    """The one table of limits."""
    rows = ["| limit | at most | unit | why |", "|---|---|---|---|"]
    rows += [f"| `{limit.name}` | {limit.most:,} | {limit.unit} | {limit.why} |" for limit in limits.LIMITS.values()]
    intro = (
        "Over a limit the answer is 413 (bytes) or 422 (everything else), and its body names `limit`, `most` and "
        "`value`. Nothing of such a request is appended. "
        "Overload is 429 or 503 with `Retry-After`, and never a silent drop."
    )
    return "\n\n".join(["# Limits", MADE, intro, "\n".join(rows)]) + "\n"


def settings_page() -> str:
    """Every environment variable."""
    from icecore.settings import SETTINGS
    from icecore_ingest.logs.kafka_settings import OPTIONS, VARIABLES

    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| `{s.name}` | {f'`{s.default}`' if s.default != '' else ''} | {s.meaning} |" for s in SETTINGS]
    secrets = ["| variable | meaning |", "|---|---|"]
    secrets += [f"| `{name}` | {meaning} |" for name, (_, meaning) in VARIABLES.items()]
    options = ["| option | default | values | meaning |", "|---|---|---|---|"]
    options += [f"| `{o.name}` | `{o.default}` | {o.values} | {o.meaning} |" for o in OPTIONS.values()]
    kafka = (
        "## A log on Kafka\n\nNamed by `kafka://HOST:PORT,HOST:PORT?option=value&…` (`--log`, `ICECORE_LOG`). "
        "A URL holds no password: who we are comes from the environment."
    )
    from icecore_api.blobs.remote_settings import PARAMETERS

    words = ["| word | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in PARAMETERS.items())]
    bucket = (
        "## Blobs in a bucket\n\nNamed by `s3://BUCKET/PREFIX?word=value&…`, `az://…` or `gs://…` (`--blobs`, "
        "`ICECORE_BLOBS`); without it, files in the data folder. Keys come from the environment, as "
        "for other programs, or from a role: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, "
        "`AWS_REGION`, `AWS_ENDPOINT_URL`; "
        "`AZURE_STORAGE_ACCOUNT_NAME` and `…_KEY`; `GOOGLE_APPLICATION_CREDENTIALS`."
    )
    seen = "What servers say and trace has settings of its own: [observability.md](observability.md#logs)."
    parts = ["# Settings", MADE, "\n".join(rows), seen, "\n".join(_options()), kafka, "\n".join(options)]
    parts += ["\n".join(secrets), bucket, "\n".join(words)]
    return "\n\n".join(parts) + "\n"


def _options() -> list[str]:
    """The options of commands that have a variable, too."""
    from icecore.cli.docs import commands

    found: dict[str, tuple[click.Option, list[str]]] = {}
    for path, command in commands():
        for option in command.params:
            if isinstance(option, click.Option) and isinstance(option.envvar, str):
                found.setdefault(option.envvar, (option, []))[1].append(path)
    rows = ["## Options of commands", "", "Where the option is not given, the variable is.", ""]
    rows += ["| variable | default | option | meaning |", "|---|---|---|---|"]
    for name, (option, paths) in sorted(found.items()):
        said = isinstance(option.default, str | int | float) and option.default not in ("", False)
        whose = ", ".join(path.removeprefix("icecore ") for path in paths)
        default = f"`{option.default}`" if said else ""
        rows.append(f"| `{name}` | {default} | `{option.opts[0]}` of {whose} | {option.help or ''} |")
    return rows


def cli_page() -> str:
    """The command line's own help."""
    from icecore.cli.docs import render

    return f"# The command line\n\n{MADE}\n{render()}"


PAGES = {"events.md": events_page, "limits.md": limits_page, "settings.md": settings_page, "cli.md": cli_page}


def main() -> int:
    """Write the pages, or with --check compare them."""
    wrong = 0
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                sys.stderr.write(f"expected docs/{name} to be what the code says; next: make docs\n")
                wrong = 1
        else:
            path.write_text(text, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
