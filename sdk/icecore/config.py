"""A run's config: what the training was asked to do. A mapping with attributes; changes become `run.updated`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final

import orjson

from icecore.errors import UsageError
from icecore.limits import most

_KEY_CHARS: Final = most("key_chars")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DEPTH_MOST: Final = most("json_depth") - 4


def plain(value: Any, depth: int = 0, room: int = _KEY_CHARS) -> Any:
    """Any value as JSON can hold it and as the server takes it, losing as little as possible.

    Mappings, sequences, sets, dataclasses and namespaces keep their shape; numpy and torch scalars and small arrays
    become numbers and lists; NaN and infinities become text, for JSON has none; everything else becomes its `str`,
    and so does what is nested so deep that its dotted path would be too long.

    Args:
        value: anything.
        depth: how deep it is nested already.
        room: how many characters its dotted paths may still take.
    """
    if isinstance(value, str):
        return str(value).encode(errors="replace").decode()
    if value is None or type(value) is bool:
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else str(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity"}.get(f"{value}", "-Infinity")
    if depth > _DEPTH_MOST:
        return str(value)
    if (members := as_mapping(value)) is not None:
        keys = {plain_key(str(key)): member for key, member in members.items()}
        if depth and any(len(key) > room for key in keys):
            return str(value)
        return {key: plain(member, depth + 1, room - len(key) - 1) for key, member in keys.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member, depth + 1, room) for member in value]
    if isinstance(value, (set, frozenset)):
        return [plain(member, depth + 1, room) for member in sorted(value, key=repr)]
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist(), depth + 1, room)
    return plain(str(value))


def plain_key(key: str) -> str:
    """A key as it may be stored: control characters become spaces, and what is beyond its limit is cut."""
    sound = _CONTROL.sub(" ", key.encode(errors="replace").decode())
    return sound if len(sound) <= _KEY_CHARS else sound[: _KEY_CHARS - 1] + "…"


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping, an argparse namespace or a dataclass instance as a mapping; None for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def read_config(value: Any) -> dict[str, Any]:
    """What people give as a config, as plain JSON.

    Raises:
        UsageError: it is no mapping, namespace or dataclass, or larger than a config may be.
    """
    members = as_mapping(value if value is not None else {})
    if members is None:
        raise UsageError(
            f"expected config to be a dict, an argparse namespace or a dataclass, got {type(value).__qualname__}"
        )
    config: dict[str, Any] = plain(members)
    check_size(config)
    return config


def check_size(config: Mapping[str, Any]) -> None:
    """Refuse a config beyond its limit.

    Raises:
        UsageError: it is larger than `config_bytes`.
    """
    size = len(orjson.dumps(config))
    # an event also carries tags, notes and metadata
    if size > most("config_bytes") * 3 // 4:
        raise UsageError(
            f"expected a config of at most {most('config_bytes') * 3 // 4} bytes as JSON, got {size}",
            hint="log large values as files, and keep what runs are compared by in the config",
        )


class Config(MutableMapping[str, Any]):
    """The config of a run.

    `config["lr"]`, `config.lr`, `config.get("lr")`; nested dicts are plain dicts. Setting a value again to something
    else needs `update(…, allow_val_change=True)`: a config says what was asked for, once.
    """

    def __init__(self, values: Mapping[str, Any], changed: Callable[[dict[str, Any], list[str]], None]) -> None:
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_inherited", set())
        object.__setattr__(self, "_changed", changed)
        object.__setattr__(self, "_lock", threading.RLock())

    # ---- reading

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise AttributeError(f"expected one of the config's keys {sorted(self._values)}, got {key!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"{self._values!r}"

    def as_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self._values)

    # ---- changing

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __setattr__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        key = plain_key(key)
        with self._lock:
            del self._values[key]
        self._changed({}, [key])

    def update(self, d: Any = None, allow_val_change: bool | None = None, **more: Any) -> None:  # type: ignore[override]
        """Set several values.

        Args:
            d: a dict, an argparse namespace or a dataclass.
            allow_val_change: let a key that is set already get another value.
            **more: further values by key.

        Raises:
            UsageError: a key has another value already, or the config would be too large.
        """
        fresh = {**read_config(d), **read_config(more)}
        with self._lock:
            for key, value in fresh.items():
                if not allow_val_change and key in self._values and key not in self._inherited:
                    self._check_same(key, value)
            values = {**self._values, **fresh}
            check_size(values)
            changes = {k: v for k, v in fresh.items() if k not in self._values or self._values[k] != v}
            self._inherited.difference_update(fresh)
            object.__setattr__(self, "_values", values)
        if changes:
            self._changed(changes, [])

    def setdefaults(self, d: Any) -> dict[str, Any]:
        """Set the values whose keys are not there yet; the whole config."""
        self.update({key: value for key, value in read_config(d).items() if key not in self._values})
        return self.as_dict()

    def inherit(self, earlier: Mapping[str, Any]) -> None:
        """Show the values of the run as it was before it was resumed; new ones may differ from them."""
        with self._lock:
            missing = {key: value for key, value in earlier.items() if key not in self._values}
            self._inherited.update(missing)
            object.__setattr__(self, "_values", {**missing, **self._values})

    def renew_lock(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        object.__setattr__(self, "_lock", threading.RLock())

    def _check_same(self, key: str, value: Any) -> None:
        if self._values[key] != value:
            raise UsageError(
                f"expected config key {key!r} to stay {self._values[key]!r}, got {value!r}",
                hint=f"config.update({{{key!r}: …}}, allow_val_change=True) changes it",
            )
