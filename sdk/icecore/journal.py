"""What a server process says, for whoever runs it: one line of JSON on stderr for each thing, all of one shape.

    {"ts": "2026-03-03T14:00:00.123Z", "level": "error", "process": "gateway", "what": "internal error",
     "request": "9f1c…", …facts}

On a terminal the same is one readable line. `ICECORE_LOG_LEVEL` says from which level on; `ICECORE_LOG_FORMAT`
(json or text) overrules the terminal. What Python's own `logging` carries from our modules comes here too.

Neither secrets nor payloads are ever said: callers name facts one by one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import orjson

from icecore.errors import SettingsError

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FORMATS: Final = ("auto", "json", "text")
FRAMES: Final = 6
"""How many places of a traceback are told, the innermost last."""

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request that is being answered, in every line said meanwhile."""

_NOISY: Final = ("aiokafka", "faust", "mode", "kafka", "uvicorn", "urllib3", "asyncio.sslproto")
"""Libraries that say each retry: our own words say it once. Heard with ICECORE_LOG_LEVEL=debug."""


@dataclass(slots=True)
class _Journal:
    """How this process says things."""

    process: str = "icecore"
    least: int = LEVELS["info"]
    form: str = "auto"
    stream: TextIO | None = None


_journal: Final = _Journal()
_writing: Final = threading.Lock()


def begin(process: str, environ: Mapping[str, str] | None = None) -> None:
    """Name this process, take level and form from the environment, and take in Python's own logging.

    Args:
        process: gateway, store …
        environ: the environment; the process's own by default.

    Raises:
        SettingsError: ICECORE_LOG_LEVEL or ICECORE_LOG_FORMAT makes no sense.
    """
    environment = os.environ if environ is None else environ
    level = environment.get("ICECORE_LOG_LEVEL", "").strip().lower() or "info"
    form = environment.get("ICECORE_LOG_FORMAT", "").strip().lower() or "auto"
    if level not in LEVELS:
        raise SettingsError(f"expected ICECORE_LOG_LEVEL to be one of {', '.join(LEVELS)}, got {level!r}")
    if form not in FORMATS:
        raise SettingsError(f"expected ICECORE_LOG_FORMAT to be one of {', '.join(FORMATS)}, got {form!r}")
    _journal.process, _journal.least, _journal.form = process, LEVELS[level], form
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, _Heard)] + [_Heard()]
    root.setLevel(min(_journal.least, logging.WARNING))


def heard(level: Level) -> bool:
    """Whether what is said at a level is written: for callers to whom the facts cost something."""
    return LEVELS[level] >= _journal.least


def say(what: str, level: Level = "info", /, **facts: Any) -> None:
    """Say one thing; never raises, whatever the facts are or stderr has become.

    Args:
        what: a few words that stay the same, so that they can be counted.
        level: how much it matters.
        facts: what may be shown: no secrets, no payloads.
    """
    if not heard(level):
        return
    line: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "process": _journal.process,
        "what": what,
    }
    if request := request_id.get():
        line["request"] = request
    line = {**line, **facts, **line}
    with contextlib.suppress(Exception), _writing:
        stream = _journal.stream or sys.stderr
        as_text = _journal.form == "text" or (_journal.form == "auto" and stream.isatty())
        stream.write(_readable(line) if as_text else _json(line))
        stream.flush()


def places(error: BaseException) -> list[str]:
    """Where an error came from, as FILE:LINE FUNCTION: no values, as a traceback's text may quote them."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def _json(line: Any) -> str:
    return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode() + "\n"


def _readable(line: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in line.items() if name not in {"ts", "level", "process", "what"}}
    told = [f" {name}={value if isinstance(value, str) else _json(value).strip()}" for name, value in facts.items()]
    clock = datetime.now().astimezone().strftime("%H:%M:%S")
    loud = "" if line["level"] in {"debug", "info"} else f"{line['level']}: "
    return f"{clock} {line['process']}: {loud}{line['what']}{''.join(told)}\n"


class _Heard(logging.Handler):
    """Python's own logging, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say what was logged."""
        if record.name.startswith(_NOISY) and _journal.least > LEVELS["debug"]:
            return
        level: Level = "info"
        for name, number in LEVELS.items():
            if record.levelno >= number:
                level = name  # type: ignore[assignment]
        facts: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            facts |= {"error": type(record.exc_info[1]).__name__, "at": places(record.exc_info[1])}
        with contextlib.suppress(Exception):
            say(record.getMessage(), level, **facts)
