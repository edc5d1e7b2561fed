"""A run's descriptive fields as they may be stored: name, group, job type, tags, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from icecore.errors import Invalid, UsageError
from icecore.events import check_name
from icecore.limits import most


def check_text(what: str, value: Any) -> str:
    """One line of text as it may be stored.

    Raises:
        UsageError: it may not.
    """
    try:
        return check_name(f"a run's {what}", "" if value is None else str(value))
    except Invalid as error:
        raise UsageError(error.message, hint=error.hint) from error


def check_notes(notes: Any) -> str:
    """Notes as they may be stored: any text within the limit of a text.

    Raises:
        UsageError: it is longer.
    """
    text = str(notes or "").encode(errors="replace")
    if len(text) > most("text_value_bytes"):
        raise UsageError(f"expected notes of at most {most('text_value_bytes')} bytes, got {len(text)}")
    return text.decode()


def check_tags(tags: Sequence[str] | str | None) -> list[str]:
    """Tags as they may be stored, each once.

    Raises:
        UsageError: there are too many, or one may not be stored.
    """
    given = [tags] if isinstance(tags, str) else list(tags or ())
    chosen = list(dict.fromkeys(check_text("tag", tag) for tag in given))
    if len(chosen) > most("tags"):
        raise UsageError(f"expected at most {most('tags')} tags, got {len(chosen)}")
    return chosen


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A run's name, group, job type, tags and notes as they may be stored.

    Raises:
        UsageError: one may not.
    """
    checked: dict[str, Any] = {what: check_text(what, fields.get(what)) for what in ("name", "group", "job_type")}
    checked["tags"] = check_tags(fields.get("tags"))
    checked["notes"] = check_notes(fields.get("notes"))
    return checked
