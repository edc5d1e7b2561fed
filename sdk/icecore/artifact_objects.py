"""Objects as files of an artifact: `artifact.add(obj, "name")`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from icecore.errors import UsageError

KINDS = "a dict or list (JSON), a numpy array (.npy), a pandas DataFrame (.parquet) or a PIL image (.png)"


def path_of(obj: Any, path: str) -> str:
    """The path of the file that an object becomes: `path`, with the suffix of its kind where it has another ending.

    Raises:
        UsageError: it is of no kind that is known.
    """
    suffix, _ = _kind_of(obj)
    return path if path.lower().endswith(suffix) else path + suffix


def write_object(obj: Any, path: Path) -> None:
    """Write an object to a file. The same object gives the same bytes.

    Raises:
        UsageError: it is of no kind that is known, or cannot be kept as that.
    """
    _, write = _kind_of(obj)
    write(obj, path)


def _kind_of(obj: Any) -> tuple[str, Callable[[Any, Path], None]]:
    if _is(obj, "numpy", "ndarray"):
        return ".npy", _write_array
    if _is(obj, "pandas", "DataFrame"):
        return ".parquet", _write_frame
    if _is(obj, "PIL.Image", "Image"):
        return ".png", _write_image
    if isinstance(obj, Mapping | list | tuple):
        return ".json", _write_json
    raise UsageError(
        f"expected {KINDS}, got {type(obj).__module__}.{type(obj).__qualname__}",
        hint="write it to a file, and add_file that",
    )


def _is(obj: Any, module: str, name: str) -> bool:
    """Whether it is of a library's class; a library that was not imported yet has no objects."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(obj, cls)


def _write_array(obj: Any, path: Path) -> None:
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, obj, allow_pickle=False)
    except ValueError as error:
        raise UsageError(f"expected an array of numbers or texts, got {obj.dtype}: {error}") from error


def _write_frame(obj: Any, path: Path) -> None:
    try:
        obj.to_parquet(path)
    except (ImportError, ValueError, TypeError) as error:
        raise UsageError(f"expected a DataFrame that Parquet can hold, got {error}") from error
    except Exception as error:  # pyarrow's own errors, which are not imported here
        if type(error).__module__.startswith("pyarrow"):
            raise UsageError(f"expected a DataFrame that Parquet can hold, got {error}") from error
        raise


def _write_image(obj: Any, path: Path) -> None:
    try:
        obj.save(path, format="PNG")
    except (OSError, ValueError) as error:
        raise UsageError(f"expected an image that PNG can hold, got mode {obj.mode}: {error}") from error


def _write_json(obj: Any, path: Path) -> None:
    try:
        path.write_bytes(orjson.dumps(obj, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY))
    except orjson.JSONEncodeError as error:
        raise UsageError(f"expected what JSON can hold, got {error}") from error
