"""A run: what a training script writes to."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from icecore.codec import rows_to_blocks
from icecore.config import Config
from icecore.errors import UsageError
from icecore.events import Event, RunDropped, RunFinished, RunStarted, RunSummarised, RunUpdated, now_ms
from icecore.exits import Ending, unwatch, watch, watch_child
from icecore.fields import check_notes, check_tags, check_text
from icecore.history import History
from icecore.lanes import CLOSED, VALUES_HIGH, Lane, opened
from icecore.recorder import Recorder
from icecore.run_artifacts import RunArtifacts
from icecore.settings import Settings
from icecore.summary import KINDS, Summary
from icecore.transport import Transport
from icecore.writer import ROWS_HIGH

_NUMBERS: Final = frozenset({float, int, bool})
_SUMMARY_KEYS: Final = 1_000
_SIGTERM_SECONDS: Final = 10.0


class Run(RunArtifacts):
    """One run of a training. `icecore.init` makes it; it is safe to use from many threads and forked children."""

    def __init__(
        self,
        settings: Settings,
        *,
        entity: str,
        project: str,
        run_id: str,
        fields: Mapping[str, Any],
        config: Mapping[str, Any],
        resumed: bool = False,
        first_step: int = 0,
        transport: Transport | None = None,
    ) -> None:
        self._settings = settings
        self._parts = (entity, project, run_id)
        self._fields = dict(fields)
        self._resumed = resumed
        self._lock = threading.RLock()
        self._pending_update: dict[str, Any] = {}
        self._pending_summary: tuple[dict[str, Any], set[str]] = ({}, set())
        self._started_ts = now_ms()
        self._started = time.monotonic()
        self._ending = Ending()
        self._finished = False
        self._capture: Any = None
        self._at_clean_finish: list[Callable[[], None]] = []
        self._pid = os.getpid()
        self._config = Config(config, self._config_changed)
        self._summary = Summary(self._summary_changed, self._drain)
        self._history = History(first_step)
        self._steps = count(first_step)
        self._recorder: Recorder | None = None
        self._queue: Any = None
        self._lane: Lane | None = None
        # the lane of the last row, or none while something makes the fast path wait
        self._open = CLOSED
        if settings.mode != "disabled":
            self._begin(transport, resumed=resumed)
            watch(self)

    # ------------------------------------------------------------------------------------------------ logging

    def log(self, data: Mapping[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        """Add values to the run's history.

        Args:
            data: values by key: numbers, text, bools, numpy or torch scalars; nested dicts become dotted keys.
            step: which step they belong to, in any order; without it each committing call is a new step.
            commit: False gathers the values, and the next call adds to the same row.

        Raises:
            UsageError: `data` is no dict, a key is no str, or the run has finished.
        """
        if step is None and commit is None and type(data) is dict:
            pick, width, flat, steps = self._open
            try:
                values = pick(data) if len(data) == width else ()
            except KeyError:
                values = ()  # as many keys, but others
            if values and _NUMBERS.issuperset(map(type, values)):
                flat += [next(steps), time_ns(), *values]
                if len(flat) > VALUES_HIGH:
                    self._relieve()
                return
        self._log(data, step, commit)

    def _log(self, data: Mapping[str, Any], step: int | None, commit: bool | None) -> None:
        """Everything that the fast path does not take."""
        if not isinstance(data, Mapping):
            raise UsageError(
                f"expected a dict of values by name, got {type(data).__qualname__}", hint='run.log({"loss": loss})'
            )
        if self._finished:
            raise UsageError(
                f"expected a run that is going on, got {self.path}, which has finished",
                hint="log before finish(), or begin another run with icecore.init()",
            )
        with self._lock:
            recorder = None if self.disabled else self._in_this_process()
            self._open = CLOSED
            # only a step that none has been given before: the writer takes lanes before the queue
            fresh = step is None and not self._history.gathering
            rows = self._history.take(data, step, commit=commit, steps=self._steps)
            self._steps = rows.steps
            if recorder is None:  # nothing is kept but the summary
                self._summary.observe(rows_to_blocks((number, 0, values) for number, values in rows.ready))
                return
            wide = 0
            for number, values in rows.ready:
                lane = recorder.writer.lanes.of(values) if fresh else None
                if lane is None:
                    self._queue.append((number, time_ns(), values))
                    wide += len(values)
                else:
                    lane.flat += [number, time_ns(), *values.values()]
                    self._lane = lane
            if not self._history.gathering:
                self._open = opened(self._lane, self._steps)
        if self._history.wide(wide, len(self._queue)) or len(self._queue) > ROWS_HIGH:
            self._relieve()

    def _relieve(self) -> None:
        recorder = self._recorder
        if recorder is not None:
            recorder.writer.relieve()

    def _drain(self) -> None:
        if self._recorder is not None and self._pid == os.getpid():
            self._recorder.writer.drain()

    def _emit(self, event: Event) -> None:
        """Queue an event of this run; from any thread."""
        recorder = self._recorder
        if recorder is not None and self._pid == os.getpid():
            recorder.writer.emit(event)

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,  # noqa: ARG002 - wandb's
        hidden: bool | None = None,
        summary: str | None = None,
        goal: str | None = None,
        overwrite: bool | None = None,  # noqa: ARG002 - wandb's
    ) -> None:
        """Say what a metric's summary is, and what it is drawn over.

        Args:
            name: a key, or a pattern with `*`.
            step_metric: the key on the x axis of its charts.
            step_sync: accepted; the values of a row always belong together.
            hidden: leave it out of charts made by themselves.
            summary: min, max, mean, last (the default), first or none; `best` goes by `goal`.
            goal: minimize or maximize, for `summary="best"`.
            overwrite: accepted; the latest word on a name counts.

        Raises:
            UsageError: a value is none of these.
        """
        kind = summary
        if summary == "best":
            kind = {"minimize": "min", "maximize": "max"}.get(goal or "", "")
        if summary == "copy":
            kind = "last"
        if not isinstance(name, str) or not name:
            raise UsageError(f"expected a metric's name, got {name!r}")
        name, step_metric = (
            check_text("metric", name),
            None if step_metric is None else check_text("metric", step_metric),
        )
        if kind is not None and kind not in KINDS:
            raise UsageError(f"expected summary to be one of {', '.join(KINDS)}, got {summary!r}")
        said = {"summary": kind, "step_metric": step_metric, "hidden": "true" if hidden else None}
        with self._lock:
            if kind is not None:
                self._drain()
                self._summary.define(name, kind)
            metrics = self._pending_update.setdefault("metrics", {})
            metrics.setdefault(name, {}).update({key: str(value) for key, value in said.items() if value is not None})

    # ------------------------------------------------------------------------------------------------- facts

    @property
    def id(self) -> str:
        """The run's id, unique in its project."""
        return self._parts[2]

    @property
    def entity(self) -> str:
        """The user or team that owns it."""
        return self._parts[0]

    @property
    def project(self) -> str:
        """The project it is in."""
        return self._parts[1]

    @property
    def path(self) -> str:
        """The path `entity/project/run_id`."""
        return "/".join(self._parts)

    @property
    def url(self) -> str:
        """Where to look at it."""
        entity, project, run_id = (quote(part, safe="") for part in self._parts)
        return f"{self._settings.url}/{entity}/{project}/{run_id}"

    def get_url(self) -> str:
        """Where to look at it."""
        return self.url

    @property
    def step(self) -> int:
        """The step that the next call of `log` without a step is given."""
        waiting = self._history.gathering_step
        if waiting is not None:
            return waiting
        return int(repr(self._steps)[6:-1])  # a count shows its next value in no other way

    @property
    def config(self) -> Config:
        """What the training was asked to do."""
        return self._config

    @property
    def config_static(self) -> dict[str, Any]:
        """A copy of the config as a plain dict."""
        return self._config.as_dict()

    @property
    def summary(self) -> Summary:
        """One value a metric, live."""
        return self._summary

    @property
    def resumed(self) -> bool:
        """Whether it goes on with an earlier run."""
        return self._resumed

    @property
    def offline(self) -> bool:
        """Whether it is kept on this machine until `icecore sync`."""
        return self._settings.mode == "offline"

    @property
    def disabled(self) -> bool:
        """Whether nothing is kept at all."""
        return self._settings.mode == "disabled"

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def start_time(self) -> float:
        """When it began, in seconds since 1970 UTC."""
        return self._started_ts / 1000

    @property
    def dir(self) -> str:
        """A folder for the run's own files, made when first asked for."""
        folder: Path = self._settings.dir / "files" / self._recorder.spool.producer if self._recorder else Path.cwd()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    @property
    def name(self) -> str:
        """The display name; may be set."""
        return str(self._fields["name"])

    @name.setter
    def name(self, value: str) -> None:
        self._set_field("name", check_text("name", value))

    @property
    def notes(self) -> str:
        """The notes; may be set."""
        return str(self._fields["notes"])

    @notes.setter
    def notes(self, value: str) -> None:
        self._set_field("notes", check_notes(value))

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags; may be set."""
        return tuple(self._fields["tags"])

    @tags.setter
    def tags(self, value: Sequence[str] | None) -> None:
        self._set_field("tags", check_tags(value))

    @property
    def group(self) -> str:
        """The group; may be set."""
        return str(self._fields["group"])

    @group.setter
    def group(self, value: str) -> None:
        self._set_field("group", check_text("group", value))

    @property
    def job_type(self) -> str:
        """The job type; may be set."""
        return str(self._fields["job_type"])

    @job_type.setter
    def job_type(self, value: str) -> None:
        self._set_field("job_type", check_text("job_type", value))

    def __repr__(self) -> str:
        return f"<icecore.Run {self.path}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"expected an attribute of icecore.Run, got {name!r}: icecore has no Run.{name}")

    # ----------------------------------------------------------------------------------------------- changes

    def _set_field(self, field: str, value: Any) -> None:
        with self._lock:
            self._fields[field] = value
            self._pending_update[field] = value

    def _config_changed(self, changes: dict[str, Any], removed: list[str]) -> None:
        with self._lock:
            pending = self._pending_update
            pending.setdefault("config", {}).update(changes)
            gone = set(pending.get("config_removed", ())) - changes.keys() | set(removed)
            for key in removed:
                pending["config"].pop(key, None)
            pending["config_removed"] = sorted(gone)

    def _summary_changed(self, values: dict[str, Any], removed: list[str]) -> None:
        with self._lock:
            fresh, gone = self._pending_summary
            fresh.update(values)
            gone.difference_update(values)
            for key in removed:
                fresh.pop(key, None)
                gone.add(key)

    def _changes(self) -> list[Event]:
        """What has changed since the last call, as events: many changes, one event."""
        with self._lock:
            update, self._pending_update = self._pending_update, {}
            (fresh, gone), self._pending_summary = self._pending_summary, ({}, set())
        events: list[Event] = []
        if update:
            events.append(RunUpdated(run=self.path, **update))
        if gone:
            events.append(RunSummarised(run=self.path, removed=sorted(gone)))
        items = list(fresh.items())
        events += [
            RunSummarised(run=self.path, set=dict(items[start : start + _SUMMARY_KEYS]))
            for start in range(0, len(items), _SUMMARY_KEYS)
        ]
        return events

    # ---------------------------------------------------------------------------------------- start, fork, end

    def _begin(self, transport: Transport | None, *, resumed: bool) -> Recorder:
        recorder = Recorder(self.path, self._settings, self._summary, self._changes, transport)
        recorder.start(
            RunStarted(
                run=self.path,
                name=self._fields["name"],
                group=self._fields["group"],
                job_type=self._fields["job_type"],
                tags=list(self._fields["tags"]),
                notes=self._fields["notes"],
                config=self._config.as_dict(),
                started_ts=self._started_ts,
                resumed=resumed,
            )
        )
        self._recorder = recorder
        self._queue = recorder.writer.queue
        return recorder

    def attach_capture(self, capture: Any) -> None:
        """Let `capture.stop()` be called at the end."""
        self._capture = capture

    def on_clean_finish(self, act: Callable[[], None]) -> None:
        """Do something when the run finishes with exit code 0."""
        self._at_clean_finish.append(act)

    def _forked(self) -> None:
        """This process is a fork: the files and threads are the parent's, and what was queued is its to write."""
        self._open, self._lane = CLOSED, None
        self._lock = threading.RLock()
        self._config.renew_lock()
        self._summary.renew_lock()
        self._pending_update = {}
        self._pending_summary = ({}, set())
        self._capture = None
        self._at_clean_finish = []
        self._history.forget()
        if self._recorder is not None:
            self._recorder.abandon()
            self._recorder = None

    def _in_this_process(self) -> Recorder:
        """This process's own part, begun now where it is a fork that logs for the first time."""
        if self._recorder is None:
            self._pid = os.getpid()
            self._started_ts, self._started = now_ms(), time.monotonic()
            watch_child()
            return self._begin(None, resumed=False)
        return self._recorder

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run: save everything, and wait until the server has it or the time for that is up.

        Args:
            exit_code: 0 is success; by default what is known of how the process ends.
            quiet: print nothing.
        """
        with self._lock:
            if self._finished:
                return
            self._finished = True
            self._open = CLOSED
        unwatch(self)
        if exit_code is not None:
            self._ending.by_code(exit_code)
        if self._recorder is None:
            return  # disabled, or a forked child that never logged
        if self._capture is not None:
            self._capture.stop()
        silent = self._settings.silent if quiet is None else quiet
        errors = self._finish_uploads(killed=self._ending.state == "killed", silent=silent)
        self._last_events(self._recorder)
        if self._ending.state == "finished":
            for act in self._at_clean_finish:
                act()
        timeout = self._settings.finish_timeout
        if self._ending.state == "killed":
            timeout = min(timeout, _SIGTERM_SECONDS)
        progress = not silent and sys.stderr is not None and sys.stderr.isatty()
        self._recorder.finish(timeout, progress=progress).tell(self.name, self.url, silent=silent)
        self._tell_uploads(errors, ended_well=self._ending.state == "finished")

    def _last_events(self, recorder: Recorder) -> None:
        """The gathered row, what was left out, and the end."""
        for number, values in self._history.flush(self._steps):
            self._queue.append((number, time_ns(), values))
        recorder.writer.drain()
        for event in self._changes():
            self._emit(event)
        if self._history.left_out:
            keys = sorted(key[:256] for key in self._history.left_out)
            total = sum(self._history.left_out.values())
            self._emit(RunDropped(run=self.path, reason="values that cannot be logged", points=total, keys=keys[:1000]))
        self._emit(
            RunFinished(
                run=self.path,
                exit_code=self._ending.exit_code,
                state=self._ending.state,
                error_type=self._ending.error_type,
                error_message=self._ending.error_message,
                finished_ts=now_ms(),
                runtime_ms=int((time.monotonic() - self._started) * 1000),
            )
        )

    def __enter__(self) -> Self:
        """Finish at the end of a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._ending.by_exception(kind, error)
        self.finish()
