"""Reading what was logged, and changing what people may change: `icecore.Api`.

api = icecore.Api()
for run in api.runs("entity/project", filters={"config.lr": {"$lt": 0.1}}, order="-summary_metrics.accuracy"):
    print(run.name, run.config.get("lr"), run.summary.get("accuracy"))
frame = api.run("entity/project/run_id").history(keys=["loss"], samples=None)
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, overload
from urllib.parse import quote, urljoin

from icecore.api_artifacts import ArtifactQueries
from icecore.api_lineage import LineageQueries, RunLineage
from icecore.errors import NotFound, UsageError
from icecore.http import JsonClient
from icecore.readout import Row, finite_or_float, frame, stream_rows, thin, want_frame
from icecore.settings import Settings, load_credentials

CHANGEABLE: Final = ("name", "notes", "group", "job_type", "tags")
ORDER_DEFAULT: Final = "+created_at"
PROJECTS_NAMED: Final = 10


class Api(ArtifactQueries, LineageQueries):
    """A server's runs, as the caller may see them.

    Args:
        api_key: the key; else ICECORE_API_KEY, else the one saved by `icecore login`.
        overrides: `entity`, `project`, `url` (or `base_url`) to use instead of the settings.
        timeout: seconds to wait for an answer.

    Raises:
        SettingsError: a setting makes no sense.
    """

    def __init__(
        self, api_key: str | None = None, overrides: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> None:
        given = {("url" if name == "base_url" else name): value for name, value in (overrides or {}).items()}
        if api_key:
            given["api_key"] = api_key
        self.settings = Settings.load(given)
        self.client = JsonClient(self.settings.url, self.settings.key, timeout or 30.0)

    @property
    def viewer(self) -> User:
        """Who the key belongs to."""
        found = self.client.ask("GET", "viewer")["user"]
        return User(found["name"] if isinstance(found, dict) else found)

    @property
    def default_entity(self) -> str:
        """The entity of paths that name none: the setting, else the key's user."""
        if self.settings.entity:
            return self.settings.entity
        saved = load_credentials(self.settings.url, self.settings.config_dir)
        if saved.get("user") and saved.get("api_key") == self.settings.key:
            return saved["user"]
        return str(self.viewer)

    def projects(self, entity: str | None = None) -> list[Project]:
        """The projects of an entity, or all of them."""
        found = [Project(doc) for doc in self.client.ask("GET", "projects")["projects"]]
        return [project for project in found if entity in (None, project.entity)]

    def runs(
        self,
        path: str | None = None,
        filters: Mapping[str, Any] | None = None,
        order: str = ORDER_DEFAULT,
        per_page: int = 50,
    ) -> Runs:
        """The runs of a project, fetched page by page as they are looked at.

        Args:
            path: `entity/project`, or `project` of the default entity; else ICECORE_PROJECT.
            filters: as in MongoDB, e.g. `{"state": "finished", "config.lr": {"$lt": 0.1}}`.
            order: a field with `+` or `-` before it, e.g. `-summary_metrics.accuracy`.
            per_page: runs a request.

        Raises:
            UsageError: the path is no project's.
            NotFound: there is no such project; raised when the runs are first looked at.
        """
        entity, project = self._project_path(path)
        return Runs(self.client, entity, project, filters or {}, order, per_page)

    def run(self, path: str) -> Run:
        """One run by `entity/project/run_id`; `project/run_id` and `run_id` use the defaults.

        Raises:
            NotFound: there is no such run.
            UsageError: the path is no run's.
        """
        parts = [part for part in path.split("/") if part]
        if len(parts) == 4 and parts[2] == "runs":  # as in a run's URL
            del parts[2]
        if not 1 <= len(parts) <= 3:
            raise UsageError(f"expected a run path entity/project/run_id, got {path!r}")
        entity, project = self._project_path("/".join(parts[:-1]) or None)
        return Run(self.client, self.client.ask("GET", _address(entity, project, parts[-1])))

    def flush(self) -> None:
        """Nothing is kept between calls: here for scripts that call it."""

    def _project_path(self, path: str | None) -> tuple[str, str]:
        parts = [part for part in (path or self.settings.project).split("/") if part]
        if len(parts) == 1:
            return self.default_entity, parts[0]
        if len(parts) != 2:
            raise UsageError(f"expected a project path entity/project, got {path!r}")
        return parts[0], parts[1]


class User(str):
    """A user's name, with the attributes scripts ask for."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name itself."""
        return str(self)

    username = entity = name


class Project:
    """A project that has runs."""

    def __init__(self, doc: Mapping[str, Any]) -> None:
        self.entity = str(doc["entity"])
        self.name = str(doc["project"])
        self.runs = int(doc["runs"])
        self.last_ts = doc.get("last_ts")

    @property
    def path(self) -> str:
        """`entity/project`."""
        return f"{self.entity}/{self.name}"

    def __repr__(self) -> str:
        return f"<Project {self.path}>"


class RunError(NamedTuple):
    """The exception that ended a run."""

    type: str
    message: str


class Runs(Sequence["Run"]):
    """Runs of a project in an order, fetched as they are needed. `len` is how many match on the server."""

    def __init__(
        self, client: JsonClient, entity: str, project: str, filters: Mapping[str, Any], order: str, per_page: int
    ) -> None:
        if per_page < 1:
            raise UsageError(f"expected per_page of at least 1, got {per_page}")
        self._client = client
        self._address = _address(entity, project)
        self._path = f"{entity}/{project}"
        self._query = {"filters": dict(filters) or None, "order": order, "limit": per_page}
        self._runs: list[Run] = []
        self._cursor: str | None = None
        self._count: int | None = None
        self._more = True

    def __len__(self) -> int:
        if self._count is None:
            self._fetch()
        return self._count or 0

    def __iter__(self) -> Iterator[Run]:
        index = 0
        while self._reach(index):
            yield self._runs[index]
            index += 1

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        if isinstance(index, slice):
            stop = index.stop
            self._reach(stop - 1 if stop is not None and stop > 0 and (index.start or 0) >= 0 else None)
            return self._runs[index]
        self._reach(index if index >= 0 else None)
        return self._runs[index]

    def _reach(self, index: int | None) -> bool:
        """Fetch until run number `index` is here (None: all); whether it is."""
        while self._more and (index is None or len(self._runs) <= index):
            self._fetch()
        return index is None or index < len(self._runs)

    def _fetch(self) -> None:
        answer = self._client.ask("GET", self._address, query={**self._query, "cursor": self._cursor})
        self._runs += [Run(self._client, doc) for doc in answer["runs"]]
        self._cursor = answer.get("cursor")
        self._more = bool(self._cursor)
        if self._count is None:
            if not answer["count"]:
                self._expect_project()
            self._count = int(answer["count"])

    def _expect_project(self) -> None:
        """Where no run is found: because none is like that, or because there is no such project?"""
        found = sorted(f"{doc['entity']}/{doc['project']}" for doc in self._client.ask("GET", "projects")["projects"])
        if self._path not in found:
            near = difflib.get_close_matches(self._path, found, PROJECTS_NAMED, 0.0)
            more = f" and {len(found) - len(near)} more" if len(found) > len(near) else ""
            raise NotFound(
                f"expected a project that has runs, got {self._path}",
                hint=f"there are {', '.join(near)}{more}" if found else "there is no project yet",
            )

    def __repr__(self) -> str:
        return f"<Runs {self._address.removeprefix('runs/')}>"


class Summary(dict[str, Any]):
    """A run's summary by dotted key; `summary["a"]` of `a.b` and `a.c` is a mapping of both."""

    def __init__(self, values: Mapping[str, Any], send: Any) -> None:
        super().__init__(values)
        self._send = send

    def __missing__(self, key: str) -> Any:
        inner = {name[len(key) + 1 :]: value for name, value in self.items() if name.startswith(f"{key}.")}
        if not inner:
            raise KeyError(key)
        return Summary(inner, self._send)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, else `default`."""
        try:
            return self[key]
        except KeyError:
            return default

    def update(self, *values: Any, **more: Any) -> None:
        """Set values; what has been set since the run was read is sent to the server."""
        super().update(*values, **more)
        self._send()


class Run(RunLineage):
    """A run as it was when it was read. Change fields, then `update()`."""

    name: str
    notes: str
    group: str
    job_type: str
    tags: list[str]

    def __init__(self, client: JsonClient, doc: Mapping[str, Any]) -> None:
        self._client = client
        self._take(doc)

    def _take(self, doc: Mapping[str, Any]) -> None:
        self._doc = dict(doc)
        for field in CHANGEABLE:
            setattr(self, field, copy.copy(doc.get(field)) or ([] if field == "tags" else ""))
        self._config: dict[str, Any] = finite_or_float(doc.get("config") or {})
        self._summary: dict[str, Any] = finite_or_float(doc.get("summary") or {})
        self.config = copy.deepcopy(self._config)
        """The nested configuration."""
        self.summary = Summary(copy.deepcopy(self._summary), self._send_summary)
        """Dotted key -> value; with `_step`, `_timestamp` and `_runtime`."""

    # ---- what is read only

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self._doc["id"])

    @property
    def entity(self) -> str:
        """The user or team that owns it."""
        return str(self._doc["entity"])

    @property
    def project(self) -> str:
        """Its project."""
        return str(self._doc["project"])

    @property
    def path(self) -> str:
        """`entity/project/run_id`."""
        return f"{self.entity}/{self.project}/{self.id}"

    @property
    def api_path(self) -> str:
        """Where the API has it, below `/api/v1/`."""
        return _address(self.entity, self.project, self.id)

    @property
    def state(self) -> str:
        """`running`, `finished`, `failed`, `killed` or `crashed`."""
        return str(self._doc.get("state", ""))

    @property
    def exit_code(self) -> int | None:
        """How its process ended: 0 is success. None while it is not known."""
        return self._doc.get("exit_code")

    @property
    def error(self) -> RunError | None:
        """What ended a run that failed; None for any other."""
        found = self._doc.get("error")
        return RunError(str(found.get("type") or ""), str(found.get("message") or "")) if found else None

    @property
    def user(self) -> User:
        """Who started it."""
        return User(self._doc.get("user") or "")

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC."""
        return str(self._doc.get("created_at") or "")

    @property
    def heartbeat_at(self) -> str:
        """When it was last heard of: ISO 8601, UTC."""
        return str(self._doc.get("heard_at") or "")

    @property
    def url(self) -> str:
        """Its page."""
        return urljoin(f"{self._client.url}/", str(self._doc.get("url") or ""))

    @property
    def last_step(self) -> int | None:
        """The highest step logged; None before the first."""
        step = self._doc.get("last_step")
        return None if step is None else int(step)

    @property
    def lastHistoryStep(self) -> int:  # noqa: N802 - the name scripts use
        """The highest step logged; -1 before the first."""
        return -1 if self.last_step is None else self.last_step

    @property
    def metadata(self) -> dict[str, Any]:
        """Git, command, host, Python, packages and hardware, as captured."""
        if "metadata" not in self._doc:
            self._doc = {**self._doc, **self._client.ask("GET", self.api_path)}
        return dict(self._doc.get("metadata") or {})

    @property
    def rawconfig(self) -> dict[str, Any]:
        """The configuration as the server gave it."""
        return copy.deepcopy(self._config)

    def as_dict(self) -> dict[str, Any]:
        """Everything the server said of it."""
        return copy.deepcopy(self._doc)

    # ---- history

    def history(
        self,
        samples: int | None = 500,
        keys: Sequence[str] | None = None,
        x_axis: str = "_step",
        pandas: bool | None = None,
        stream: str = "default",
    ) -> Any:
        """What was logged, in the order of `x_axis`.

        Args:
            samples: at most so many rows, evenly spaced; None is every row.
            keys: which keys; every one by default. A row has at least one of them.
            x_axis: what to order by: `_step`, `_timestamp`, `_runtime` or a key.
            pandas: a DataFrame, or a list of dicts; by default a DataFrame where pandas is installed.
            stream: `default`, or `system` for the machine's metrics.

        Returns:
            `_step`, `_timestamp` (s since 1970), `_runtime` (s) and the keys. A missing value is NaN, or left out
            of its dict.

        Raises:
            UsageError: `pandas=True` without pandas, or an argument makes no sense.
        """
        if samples is not None and samples < 1:
            raise UsageError(f"expected samples of at least 1, or None for every row, got {samples}")
        as_frame = want_frame(pandas)
        wanted = None if keys is None else [*_key_list(keys), *([] if x_axis.startswith("_") else [x_axis])]
        by_step = x_axis == "_step"
        rows = list(self.rows(wanted, stream=stream, samples=samples if by_step else None))
        if not by_step:
            rows = sorted((row for row in rows if row.get(x_axis) is not None), key=lambda row: row[x_axis])
        rows = thin(rows, samples)
        return frame(rows, wanted) if as_frame else rows

    def scan_history(
        self,
        keys: Sequence[str] | None = None,
        page_size: int = 1000,
        min_step: int | None = None,
        max_step: int | None = None,
    ) -> Iterator[Row]:
        """Every row as a dict, in the order of steps, read while it streams.

        Args:
            keys: which keys; rows have all of them, None where nothing was logged.
            page_size: taken for scripts that give it; the answer is one stream.
            min_step: the first step.
            max_step: the step to stop before.
        """
        if page_size < 1:
            raise UsageError(f"expected page_size of at least 1, got {page_size}")
        last = None if max_step is None else max_step - 1
        missing = dict.fromkeys(keys or ())
        for row in self.rows(keys, min_step=min_step, max_step=last):
            yield {**missing, **row}

    def rows(self, keys: Sequence[str] | None = None, stream: str = "default", **bounds: int | None) -> Iterator[Row]:
        """The history as the server streams it. `bounds`: `min_step`, `max_step` (inclusive), `samples`."""
        if stream not in {"default", "system"}:
            raise UsageError(f"expected the stream default or system, got {stream!r}")
        kind = "system" if stream == "system" else None
        query = {"keys": None if keys is None else _key_list(keys), "kind": kind, **bounds}
        return stream_rows(self._client, f"{self.api_path}/history", query)

    # ---- changes

    def load(self, force: bool = False) -> Run:
        """Read it again; without `force` only what a listing left out."""
        if force or "metadata" not in self._doc:
            self._take(self._client.ask("GET", self.api_path))
        return self

    def update(self) -> None:
        """Send what was changed: name, notes, tags, group, job type, config and summary.

        Raises:
            NotFound, Conflict, Invalid: the server refused; nothing was changed.
        """
        changes: dict[str, Any] = {}
        for field in CHANGEABLE:
            if getattr(self, field) != (self._doc.get(field) or ([] if field == "tags" else "")):
                changes[field] = getattr(self, field)
        changes |= _difference("config", self._config, self.config)
        changes |= _difference("summary", self._summary, dict(self.summary))
        if changes:
            self._take(self._client.ask("PATCH", self.api_path, body=changes))

    def _send_summary(self) -> None:
        changes = _difference("summary", self._summary, dict(self.summary))
        if changes:
            self._client.ask("PATCH", self.api_path, body=changes)
            self._summary = copy.deepcopy(dict(self.summary))

    def delete(self) -> None:
        """Hide it from every listing; `restore` brings it back."""
        self._client.ask("DELETE", self.api_path)

    def restore(self) -> None:
        """Bring it back after `delete`."""
        self._client.ask("POST", f"{self.api_path}/restore")

    def __repr__(self) -> str:
        return f"<Run {self.path} ({self.state})>"


def _key_list(keys: Sequence[str]) -> list[str]:
    if isinstance(keys, str):
        raise UsageError(f"expected keys as a list, got the text {keys!r}", hint=f"keys=[{keys!r}]")
    return list(keys)


def _address(*parts: str) -> str:
    return "/".join(["runs", *(quote(part, safe="") for part in parts)])


def _difference(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a PATCH that turn `before` into `after`."""
    changed = {key: value for key, value in after.items() if key not in before or not _same(before[key], value)}
    removed = [key for key in before if key not in after]
    fields: dict[str, Any] = {}
    if changed:
        fields[name] = changed
    if removed:
        fields[f"{name}_removed"] = removed
    return fields


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) or repr(one) == repr(other)  # NaN is not equal to itself, and not changed
