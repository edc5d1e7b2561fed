"""Every setting of the client, in one table, and the user's saved keys.

A setting is given to `init(settings={…})`, or in the environment, or left at its default: in that order. What people
are likely to change in a script (project, name, tags …) is also an argument of `init`, which goes first of all.

docs/settings.md is made from `SETTINGS`.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from icecore.errors import SettingsError

URL_DEFAULT: Final = "http://127.0.0.1:8700"
PROJECT_DEFAULT: Final = "uncategorized"
MODES: Final = ("online", "offline", "disabled")
CONSOLE_MODES: Final = ("auto", "redirect", "wrap", "off")

_UNITS: Final = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})


# ---------------------------------------------------------------------------------------------------- readers


def _text(value: Any) -> str:
    return str(value)


def _url(value: Any) -> str:
    url = str(value).strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("a URL such as http://127.0.0.1:8700")
    return url


def _mode(value: Any) -> str:
    if value not in MODES:
        raise ValueError(f"one of {', '.join(MODES)}")
    return str(value)


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("true or false")


def _console(value: Any) -> str:
    text = str(value).strip().lower()
    if text in CONSOLE_MODES:
        return text
    if text in _TRUE | _FALSE:
        return "auto" if text in _TRUE else "off"
    raise ValueError(f"one of {', '.join(CONSOLE_MODES)}")


def _size(value: Any) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b?)\s*", str(value).lower())
    if not match:
        raise ValueError("a size such as 500MB or 2GB")
    unit = match[2] if match[2] in _UNITS else match[2] + "b"
    return int(float(match[1]) * _UNITS[unit])


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError("a number of seconds, 0 or more")
    return seconds


def _tags(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(tag for tag in (str(part).strip() for part in parts) if tag)


def _folder(value: Any) -> Path:
    return Path(value).expanduser().absolute()


# ------------------------------------------------------------------------------------------------------ table


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its environment variable, the field of `Settings`, its default, and what it means."""

    name: str
    field: str
    default: Any
    read: Callable[[Any], Any]
    meaning: str


SETTINGS: Final = (
    Setting("ICECORE_URL", "url", URL_DEFAULT, _url, "where the server is"),
    Setting("ICECORE_API_KEY", "api_key", "", _text, "the key; else the one saved for the URL by `icecore login`"),
    Setting("ICECORE_MODE", "mode", "online", _mode, "online, offline (kept for `icecore sync`), or disabled"),
    Setting("ICECORE_DIR", "dir", "~/.icecore", _folder, "where data waits to be sent, and resume files are"),
    Setting("ICECORE_CONFIG_DIR", "config_dir", "~/.config/icecore", _folder, "where credentials.json is"),
    Setting(
        "ICECORE_ENTITY",
        "entity",
        "",
        _text,
        "the user or team that owns the run; else the one of `icecore login`, else the one at this machine",
    ),
    Setting("ICECORE_PROJECT", "project", PROJECT_DEFAULT, _text, "project, or entity/project"),
    Setting("ICECORE_RUN_ID", "run_id", "", _text, "the run's id; else 8 random letters and digits"),
    Setting("ICECORE_NAME", "name", "", _text, "the run's display name; else two words and a number"),
    Setting("ICECORE_RUN_GROUP", "run_group", "", _text, "the run's group"),
    Setting("ICECORE_JOB_TYPE", "job_type", "", _text, "the run's job type, such as train or eval"),
    Setting("ICECORE_TAGS", "tags", (), _tags, "the run's tags, separated by commas"),
    Setting("ICECORE_NOTES", "notes", "", _text, "the run's notes"),
    Setting("ICECORE_RESUME", "resume", "", _text, "allow, must, never or auto: see `init(resume=)`"),
    Setting("ICECORE_SILENT", "silent", "no", _truth, "print nothing but warnings"),
    Setting("ICECORE_SPOOL_MAX", "spool_max", "2GB", _size, "the most disk that unsent data of one process takes"),
    Setting("ICECORE_FINISH_TIMEOUT", "finish_timeout", 60.0, _seconds, "how long `finish` waits for the upload"),
    Setting(
        "ICECORE_ARTIFACT_CACHE",
        "artifact_cache",
        "~/.cache/icecore/artifacts",
        _folder,
        "where files of artifacts are kept for the next download, by content",
    ),
    Setting("ICECORE_ARTIFACT_CACHE_MAX", "artifact_cache_max", "20GB", _size, "the most disk that these files take"),
    Setting("ICECORE_CONSOLE", "console", "auto", _console, "capture stdout and stderr: auto, redirect, wrap or off"),
    Setting("ICECORE_GIT", "git", "yes", _truth, "capture the git commit, branch, remote and uncommitted changes"),
    Setting("ICECORE_GIT_DIFF_MAX", "git_diff_max", "256KB", _size, "the most of the uncommitted changes; 0 is none"),
    Setting("ICECORE_METADATA", "metadata", "yes", _truth, "capture command, host, user, Python, hardware"),
    Setting("ICECORE_PACKAGES", "packages", "yes", _truth, "capture the names and versions of installed packages"),
    Setting("ICECORE_SYSTEM_SECONDS", "system_seconds", 15.0, _seconds, "sample the machine this often; 0 is never"),
)
"""Sizes take KB, MB, GB; folders take ~; truths take 1/0, true/false, yes/no, on/off."""

_BY_FIELD: Final = {setting.field: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force. Make one with `Settings.load`; each field is a row of `SETTINGS`."""

    url: str
    api_key: str
    mode: str
    dir: Path
    config_dir: Path
    entity: str
    project: str
    run_id: str
    name: str
    run_group: str
    job_type: str
    tags: tuple[str, ...]
    notes: str
    resume: str
    silent: bool
    spool_max: int
    finish_timeout: float
    artifact_cache: Path
    artifact_cache_max: int
    console: str
    git: bool
    git_diff_max: int
    metadata: bool
    packages: bool
    system_seconds: float

    @classmethod
    def load(
        cls, given: Mapping[str, Any] | Settings | None = None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        """What is given, else the environment, else the defaults.

        Args:
            given: values by field name, or ready settings, which are returned as they are.
            environ: the environment; the process's own by default.

        Raises:
            SettingsError: a name is unknown, or a value makes no sense; the message says which.
        """
        if isinstance(given, Settings):
            return given
        environment = os.environ if environ is None else environ
        chosen = dict(given or {})
        if unknown := chosen.keys() - _BY_FIELD.keys():
            raise SettingsError(
                f"expected settings out of {', '.join(_BY_FIELD)}, got {', '.join(sorted(map(str, unknown)))}",
                hint="docs/settings.md explains each",
            )
        values = {}
        for setting in SETTINGS:
            value = chosen.get(setting.field)
            where = f"settings[{setting.field!r}]"
            if value is None:
                value, where = environment.get(setting.name) or setting.default, setting.name
            try:
                values[setting.field] = setting.read(value)
            except (ValueError, TypeError) as error:
                raise SettingsError(f"expected {where} to be {error}, got {value!r}") from error
        return cls(**values)

    def replace(self, **changes: Any) -> Settings:
        """These settings with some fields changed."""
        return Settings.load({**{f.name: getattr(self, f.name) for f in fields(self)}, **changes})

    @property
    def key(self) -> str:
        """The API key for the URL: the one given, else the saved one, else empty."""
        return self.api_key or load_credentials(self.url, self.config_dir).get("api_key", "")

    @property
    def user(self) -> str:
        """Whose runs these are when nobody says: the entity given, the key's user, else the one at this machine."""
        if self.entity:
            return self.entity
        return load_credentials(self.url, self.config_dir).get("user", "") or machine_user()


def machine_user() -> str:
    """The name of the user at this machine, or `default` where it has none."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        name = re.sub(r"[/\\#?%:\s]", "-", getpass.getuser()).strip()
        if name and name not in {".", ".."}:
            return name
    return "default"


def config_dir() -> Path:
    """The folder of the user's credentials: ICECORE_CONFIG_DIR, else ~/.config/icecore."""
    return _folder(os.environ.get("ICECORE_CONFIG_DIR") or _BY_FIELD["config_dir"].default)


# ------------------------------------------------------------------------------------------------ credentials


def load_credentials(url: str, folder: Path | None = None) -> dict[str, str]:
    """What `save_credentials` kept for the server at `url`: `api_key` and `user`; empty where nothing was kept."""
    found = _read_credentials((folder or config_dir()) / "credentials.json").get(_origin(url), {})
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def save_credentials(url: str, api_key: str, user: str, folder: Path | None = None) -> Path:
    """Keep a key for the server at `url`, readable by this user only. Keys of other servers stay.

    Args:
        url: the server's URL; its path and a slash at its end do not matter.
        api_key: the key.
        user: the name of the key's user, the default entity of runs.
        folder: where credentials.json is; `config_dir()` by default.

    Returns:
        The file written.

    Raises:
        OSError: the folder cannot be written.
    """
    import orjson

    home = folder or config_dir()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / "credentials.json"
    with _locked(home / "credentials.lock"):
        everything = _read_credentials(path)
        everything[_origin(url)] = {"api_key": api_key, "user": user}
        fresh = home / f"credentials.json.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(everything, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    return path


def _read_credentials(path: Path) -> dict[str, Any]:
    import orjson

    try:
        everything = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return everything if isinstance(everything, dict) else {}


def _origin(url: str) -> str:
    """Scheme, host and port: localhost and 127.0.0.1 are one server."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{'127.0.0.1' if host == 'localhost' else host}:{port}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
