"""Beginning a run: `icecore.init`, and the run that the module-level functions speak of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, NoReturn, ParamSpec, TypeVar

from icecore.config import Config, read_config
from icecore.errors import Invalid, UsageError
from icecore.events import check_path_part
from icecore.fields import check_fields
from icecore.names import run_id as new_run_id
from icecore.names import run_name
from icecore.notes import say, warn
from icecore.resume import Earlier, auto_file, look_up, read_auto, warn_of_earlier, write_auto
from icecore.run import Run
from icecore.settings import MODES, Settings
from icecore.summary import Summary
from icecore.transport import Transport

RESUMES: Final = ("allow", "must", "never", "auto")
REINITS: Final = ("default", "return_previous", "finish_previous", "create_new")
_ELSEWHERE: Final = frozenset(
    {
        "allow_val_change",
        "anonymous",
        "config_exclude_keys",
        "config_include_keys",
        "force",
        "fork_from",
        "magic",
        "monitor_gym",
        "resume_from",
        "save_code",
        "sync_tensorboard",
        "tensorboard",
    }
)
"""Arguments of wandb's init that mean nothing here: a script that gives them runs, and is told."""

P = ParamSpec("P")
T = TypeVar("T")

_lock: Final = threading.RLock()
_current: list[Run] = []


def current() -> Run | None:
    """The run that was begun last and has not finished."""
    while _current and _current[-1]._finished:  # noqa: SLF001 - one mechanism
        _current.pop()
    return _current[-1] if _current else None


def init(
    project: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    id: str | None = None,  # noqa: A002 - the name people know
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | str | None = None,
    notes: str | None = None,
    config: Any = None,
    resume: bool | Literal["allow", "must", "never", "auto"] | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 - the name people know
    settings: Mapping[str, Any] | Settings | None = None,
    reinit: bool | Literal["default", "return_previous", "finish_previous", "create_new"] | None = None,
    **elsewhere: Any,
) -> Run:
    """Begin a run. Returns at once, whether there is a server or not.

    Args:
        project: what the run belongs to; `entity/project` is accepted.
        entity: the user or team that owns it.
        name: what people call it.
        id: its id, to go on with it or to write to it from several processes.
        group: the group of runs it is compared within.
        job_type: such as train or eval.
        tags: short labels.
        notes: a longer description.
        config: a dict, argparse namespace or dataclass of what the training was asked to do.
        resume: allow (go on if it exists), must, never, or auto (True: go on with what did not finish well here).
        mode: online, offline (kept here for `icecore sync`), or disabled (nothing is kept).
        dir: where data waits to be sent.
        settings: further settings by name, see docs/settings.md.
        reinit: what happens to a run that is going on: finish_previous (the default; also True), return_previous
            (also False), or create_new (both go on).
        **elsewhere: arguments of wandb's init that mean nothing here, such as save_code.

    Returns:
        The run.

    Raises:
        UsageError: an argument makes no sense, or `resume` is not satisfied.
        SettingsError: a setting makes no sense.
        ServerUnreachable: resume="must", and no server to ask.
    """
    _check_elsewhere(elsewhere)
    with _lock:
        previous = current()
        if previous is not None and _stays(previous, reinit):
            return previous
        chosen = _settings(settings, mode=mode, dir=dir, project=project, entity=entity)
        path = _path(chosen, entity)
        how = _resume(chosen.resume if resume is None else resume)
        given = {"name": name, "group": group, "job_type": job_type, "tags": tags, "notes": notes}
        run = _begin(chosen, path, id or chosen.run_id, how, _fields(given, chosen), read_config(config))
        _current.append(run)
    if not run.disabled:
        _announce(run, chosen)
        _start_capture(run, chosen)
    return run


def _begin(
    settings: Settings, path: tuple[str, str], given_id: str, how: str, fields: dict[str, Any], config: dict[str, Any]
) -> Run:
    entity, project = path
    auto = auto_file(settings, entity, project) if how == "auto" else None
    run_id = given_id or (read_auto(auto) if auto else "") or new_run_id()
    known_id = given_id or (auto and run_id)
    if how == "must" and not given_id:
        raise UsageError("expected an id with resume='must', got none", hint="init(id=…, resume='must')")
    try:
        run_id = check_path_part("a run id", str(run_id))
    except Invalid as error:
        raise UsageError(error.message, hint=error.hint) from error
    transport = Transport(settings.url, settings.key) if settings.mode == "online" else None
    if transport is not None and given_id and not how:
        transport.ask_first = partial(warn_of_earlier, f"{entity}/{project}/{run_id}", transport)
    earlier = Earlier()
    if how and known_id and settings.mode != "disabled":
        earlier = look_up(how, f"{entity}/{project}/{run_id}", settings, transport)
    if not fields["name"]:
        # a run that is resumed keeps its name, and processes that share a run give it the same one
        fields["name"] = (earlier.exists and earlier.name) or run_name(f"{entity}/{project}/{run_id}")
    run = Run(
        settings,
        entity=entity,
        project=project,
        run_id=run_id,
        fields=fields,
        config=config,
        resumed=earlier.exists,
        first_step=earlier.last_step + 1,
        transport=transport,
    )
    run.config.inherit(earlier.config)
    run.summary.inherit(earlier.summary)
    if auto is not None and settings.mode != "disabled":
        write_auto(auto, run_id, run.path)
        run.on_clean_finish(lambda: auto.unlink(missing_ok=True))
    return run


# --------------------------------------------------------------------------------------------------- arguments


def _settings(settings: Mapping[str, Any] | Settings | None, **arguments: Any) -> Settings:
    given = {field: value for field, value in arguments.items() if value is not None}
    if "mode" in given and given["mode"] not in MODES:
        raise UsageError(f"expected mode to be one of {', '.join(MODES)}, got {given['mode']!r}")
    if "dir" in given:
        given["dir"] = Path(given["dir"])
    if isinstance(settings, Settings):
        return settings.replace(**given)
    return Settings.load({**(settings or {}), **given})


def _path(settings: Settings, asked: str | None) -> tuple[str, str]:
    """Entity and project, checked. A project may be given as `entity/project`."""
    entity, project = settings.entity, settings.project
    if "/" in project:
        owner, _, project = project.partition("/")
        if asked and asked != owner:
            raise UsageError(f"expected one entity, got {asked!r} and {owner!r} in project {settings.project!r}")
        entity = owner
    try:
        return check_path_part("an entity", entity or settings.user), check_path_part("a project", project)
    except Invalid as error:
        raise UsageError(error.message, hint=error.hint) from error


def _resume(resume: Any) -> str:
    if resume is True:
        return "auto"
    if resume in {None, False, ""}:
        return ""
    if resume not in RESUMES:
        raise UsageError(f"expected resume to be one of {', '.join(RESUMES)}, got {resume!r}")
    return str(resume)


def _reinit(reinit: Any) -> str:
    if reinit is None or isinstance(reinit, bool):
        return "return_previous" if reinit is False else "finish_previous"
    if reinit not in REINITS:
        raise UsageError(f"expected reinit to be one of {', '.join(REINITS)}, got {reinit!r}")
    return str(reinit)


def _stays(previous: Run, reinit: Any) -> bool:
    """Whether the run that is going on is the answer; else it is finished, unless both are to go on."""
    how = _reinit(reinit)
    if how not in {"return_previous", "create_new"}:
        previous.finish()
    return how == "return_previous"


def _fields(given: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    defaults = {
        "name": settings.name,
        "group": settings.run_group,
        "job_type": settings.job_type,
        "tags": settings.tags,
        "notes": settings.notes,
    }
    return check_fields({field: defaults[field] if value is None else value for field, value in given.items()})


def _check_elsewhere(elsewhere: Mapping[str, Any]) -> None:
    if unknown := sorted(elsewhere.keys() - _ELSEWHERE):
        raise UsageError(f"expected arguments of icecore.init, got {', '.join(unknown)}")
    for name, value in elsewhere.items():
        if value not in {None, False} if isinstance(value, (bool, str, type(None))) else True:
            warn(f"init({name}=…) means nothing to icecore and is left out")


# --------------------------------------------------------------------------------------------------- around it


def _announce(run: Run, settings: Settings) -> None:
    if settings.silent:
        return
    verb = "resumed" if run.resumed else "began"
    say(f"{verb} run {run.name or run.id} ({run.path})")
    if run.offline:
        say(f"offline: data is kept in {settings.dir}. Next: icecore sync")
    else:
        say(f"look at it at {run.url}")


def _start_capture(run: Run, settings: Settings) -> None:
    from icecore import capture

    try:
        run.attach_capture(capture.start(run, settings))
    except Exception as error:  # noqa: BLE001 - what is captured by itself is never worth a training
        warn(f"nothing is captured of the machine and the console: {error!r}")


# --------------------------------------------------------------------------------------------- module-level names


class BeforeInit:
    """Stands for `icecore.config` and `icecore.summary` while there is no run: any use says so."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            f"expected a run before icecore.{object.__getattribute__(self, '_what')} is used, got none",
            hint="call icecore.init() first",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    __getitem__ = __setitem__ = __delitem__ = __setattr__ = __contains__ = __iter__ = __len__ = _refuse


def the_run(what: str) -> Run:
    """The current run.

    Raises:
        UsageError: there is none.
    """
    run = current()
    if run is None:
        raise UsageError(f"expected a run before icecore.{what}(), got none", hint="call icecore.init() first")
    return run


def log(data: Mapping[str, Any], step: int | None = None, commit: bool | None = None) -> None:
    """`Run.log` of the current run."""
    the_run("log").log(data, step, commit)


def define_metric(name: str, step_metric: str | None = None, **how: Any) -> None:
    """`Run.define_metric` of the current run."""
    the_run("define_metric").define_metric(name, step_metric, **how)


def _of_the_run(method: Callable[Concatenate[Run, P], T]) -> Callable[P, T]:
    """A method of `Run` as a function that calls it on the current run."""

    @wraps(method)
    def call(*args: P.args, **words: P.kwargs) -> T:
        return method(the_run(method.__name__), *args, **words)

    return call


log_artifact = _of_the_run(Run.log_artifact)
use_artifact = _of_the_run(Run.use_artifact)
log_model = _of_the_run(Run.log_model)
use_model = _of_the_run(Run.use_model)
link_model = _of_the_run(Run.link_model)


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """`Run.finish` of the current run; nothing where there is none."""
    run = current()
    if run is not None:
        run.finish(exit_code, quiet)


def config() -> Config | BeforeInit:
    """The current run's config."""
    run = current()
    return BeforeInit("config") if run is None else run.config


def summary() -> Summary | BeforeInit:
    """The current run's summary."""
    run = current()
    return BeforeInit("summary") if run is None else run.summary


def login(key: str | None = None, host: str | None = None, relogin: bool | None = None, **elsewhere: Any) -> bool:
    """Save a key for a server, where one is given; whether there is one now.

    Args:
        key: the API key.
        host: the server's URL; ICECORE_URL by default.
        relogin: accepted; a key that is given is always saved.
        **elsewhere: accepted, as scripts for wandb give more.
    """
    from icecore.settings import save_credentials

    del relogin, elsewhere
    settings = Settings.load({"url": host} if host else None)
    if not key:
        return bool(settings.key)
    transport = Transport(settings.url, key)
    try:
        user = str(transport.get("viewer").get("user", ""))
    finally:
        transport.close()
    save_credentials(settings.url, key, user, settings.config_dir)
    return True
