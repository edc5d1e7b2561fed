"""Objects added to an artifact: each kind comes back as it was, and anything else is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import orjson
import pandas as pd
import pytest

from artifact_server import ArtifactServer
from icecore.artifact import Artifact
from icecore.errors import UsageError


@pytest.fixture
def draft(artifacts: ArtifactServer) -> Iterator[Artifact]:
    """An artifact without files, whose staged ones go at the end."""
    del artifacts
    made = Artifact("set", type="dataset")
    yield made
    if made._staging is not None:
        made._staging.cleanup()


class Picture:
    """What `PIL.Image.Image` has."""

    mode = "RGB"

    def save(self, path: Path, format: str) -> None:  # noqa: A002 - Pillow's name
        path.write_bytes(f"picture as {format}".encode())


def content(made: Artifact, path: str) -> Path:
    source = made._sources[made.manifest[path].digest].file
    assert source is not None
    return Path(source.path)


def test_objects_become_files_of_their_kind(draft: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dict is JSON, an array .npy, a frame Parquet and an image PNG; the suffix is added where it is not there."""
    pillow = ModuleType("PIL.Image")
    pillow.Image = Picture  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL.Image", pillow)
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    draft.add({"z": [1, 2.5], "a": {"é": True}}, "deep/words")
    draft.add(np.arange(6, dtype=np.float32).reshape(2, 3), "weights.npy")
    draft.add(frame, "table")
    draft.add(Picture(), "img.png")
    assert sorted(draft.manifest) == ["deep/words.json", "img.png", "table.parquet", "weights.npy"]
    assert orjson.loads(content(draft, "deep/words.json").read_bytes()) == {"a": {"é": True}, "z": [1, 2.5]}
    assert np.load(content(draft, "weights.npy")).tolist() == [[0, 1, 2], [3, 4, 5]]
    pd.testing.assert_frame_equal(pd.read_parquet(content(draft, "table.parquet")), frame)
    assert content(draft, "img.png").read_bytes() == b"picture as PNG"


def test_the_same_object_gives_the_same_digest(draft: Artifact) -> None:
    """The order of a dict's keys does not matter: the version is the same."""
    draft.add({"a": 1, "b": 2}, "x")
    digest = draft.digest
    draft.add({"b": 2, "a": 1}, "x.json", overwrite=True)
    assert draft.digest == digest


def test_another_object_needs_overwrite(draft: Artifact) -> None:
    """A second object of one name is refused, unless it is to take the first one's place."""
    draft.add([1], "x")
    with pytest.raises(UsageError, match="again"):
        draft.add([2], "x")
    draft.add([2], "x", overwrite=True)
    assert orjson.loads(content(draft, "x.json").read_bytes()) == [2]
    assert list(draft.manifest) == ["x.json"]


@pytest.mark.parametrize("obj", [object(), 5, "text", np.array([object()]), {"x": object()}])
def test_what_has_no_kind_is_refused(draft: Artifact, obj: object) -> None:
    """What cannot be kept as a file says so, and adds nothing."""
    with pytest.raises(UsageError, match="expected"):
        draft.add(obj, "x")
    assert not draft.manifest
