"""The shapes of answers and of commands, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["running", "finished", "failed", "killed", "crashed"]


class Shape(BaseModel):
    """The base of them all: built when it is first used, which at a start none is."""

    model_config = ConfigDict(defer_build=True)


class Answer(Shape):
    """The base of what is sent: nothing but what is declared."""

    model_config = ConfigDict(extra="forbid")


class Command(Shape):
    """The base of what is asked: nothing but what is declared, in its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorFacts(Shape):
    """What was expected and found. Errors may carry further facts, such as `limit` and `value`."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    hint: str


class ErrorBody(Answer):
    """Every error."""

    error: ErrorFacts


class Gap(Answer):
    """Sequence numbers of a writer that have not arrived (yet)."""

    stream: str
    producer: str
    first: int
    last: int


class Dropped(Answer):
    """What clients could not keep, for one reason."""

    reason: str
    times: int
    events: int
    points: int
    bytes: int
    keys: list[str]


class RunError(Answer):
    """The exception a run ended with."""

    type: str
    message: str


class RunAnswer(Answer):
    """A run."""

    path: str
    entity: str
    project: str
    id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    notes: str
    user: str
    state: State
    exit_code: int | None
    error: RunError | None
    created_at: str | None = Field(description="ISO-8601 UTC, as all times")
    started_at: str | None
    finished_at: str | None
    heard_at: str | None
    runtime: float = Field(description="seconds")
    config: dict[str, Any]
    summary: dict[str, Any] = Field(description="dotted keys, and _step, _timestamp (s), _runtime (s)")
    metadata: dict[str, Any]
    metrics: dict[str, Any] = Field(description="from define_metric")
    last_step: int | None
    points: int
    gaps: list[Gap]
    dropped: list[Dropped]
    url: str


class FacetValue(Answer):
    """A value of a field, and how many of the matching runs have it."""

    value: str | float | bool | None
    count: int


class RunsPage(Answer):
    """A page of runs."""

    runs: list[RunAnswer]
    cursor: str | None = Field(description="give it back for the next page; null on the last")
    count: int = Field(description="how many runs match, on all pages")
    facets: dict[str, list[FacetValue]]


class RunState(Answer):
    """A run after it was deleted or restored."""

    path: str
    deleted: bool


class RunPatch(Command):
    """What to change of a run; a field left out stays as it is."""

    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    config: dict[str, Any] | None = Field(None, description="top-level keys to set")
    config_removed: list[str] | None = Field(None, description="top-level keys to remove")
    summary: dict[str, Any] | None = Field(None, description="dotted paths to set")
    summary_removed: list[str] | None = Field(None, description="dotted paths to remove")


class Project(Answer):
    """A project and how much is in it."""

    entity: str
    project: str
    runs: int
    last_ts: int | None = Field(description="ms since 1970 UTC, when it was last heard of")


class Projects(Answer):
    """The projects."""

    projects: list[Project]


class ConsoleLine(Answer):
    """One line a run printed."""

    off: int = Field(description="offset of its record")
    line: int = Field(description="line within the record")
    ts: int
    stream: str
    text: str


class Console(Answer):
    """Lines a run printed, in order."""

    lines: list[ConsoleLine]
    next: str | None = Field(description="give it back as `after`; null where there is no line yet beyond these")


class Viewer(Answer):
    """Who asks."""

    user: str
    key_id: str
    version: str


class LogEvent(Answer):
    """An event as it is in the log."""

    stream: str
    partition: int
    offset: int
    key: str
    envelope: dict[str, Any]
    payload: Any


class LogPage(Answer):
    """Consecutive events of one partition."""

    events: list[LogEvent]
    next: int = Field(description="the offset to read from next")
    end: int = Field(description="the offset after the last event")


class DeadLetter(Answer):
    """A record that could not be folded."""

    stream: str
    partition: int
    offset: int
    id: str | None
    type: str | None
    key: str | None
    reason: str | None
    attempts: int | None
    ts_server: int | None


class DeadLetters(Answer):
    """Records that could not be folded."""

    dead_letters: list[DeadLetter]
    count: int


class Status(Shape):
    """How the server is."""

    model_config = ConfigDict(extra="allow")

    log: dict[str, int] = Field(description="the next offset of each partition of the log")
    folded: dict[str, int] = Field(description="the next offset to fold of each")
    lag: int = Field(description="records accepted and not yet folded")
    dead_letters: int
    rejections: int
    skipped: int
    data: str
    digest: str | None = None


class Job(Answer):
    """A long operation."""

    name: Literal["rebuild", "fsck", "scrub", "gc"]
    state: Literal["none", "running", "done", "failed"]
    started_ts: int | None
    finished_ts: int | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None


class Done(Shape):
    """The outcome of an operation."""

    model_config = ConfigDict(extra="allow")


class RebuildRequest(Command):
    """How to rebuild."""

    verify: bool = Field(default=False, description="only compare; do not switch")


class LoginRequest(Command):
    """A one-time token, from the link `icecore up` printed."""

    token: str = Field(min_length=1, max_length=256)


class KeyAnswer(Answer):
    """An API key, without its secret."""

    id: str
    name: str
    user: str
    state: Literal["active", "revoked"]
    created_at: str | None
    revoked_at: str | None
    current: bool = Field(description="whether this request came with it")


class KeysAnswer(Answer):
    """Every key."""

    keys: list[KeyAnswer]


class KeyMade(KeyAnswer):
    """A new API key."""

    key: str = Field(description="the secret, which is not shown again")


class KeyRequest(Command):
    """A key to be made."""

    name: str = Field(description="what people call it; no other key in force may have it")


class LoggedIn(Answer):
    """Who is logged in now."""

    user: str


class LoggedOut(Answer):
    """A session ended."""

    logged_out: bool


class Alive(Answer):
    """A process answers."""

    ok: bool
