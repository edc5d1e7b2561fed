"""One file of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from icecore.errors import UsageError

if TYPE_CHECKING:
    from icecore.artifact_draft import AnyPath
    from icecore.artifact_folder import Folder
    from icecore.manifest import Entry


class ArtifactFile:
    """One file of an artifact."""

    def __init__(self, artifact: Folder, path: str, entry: Entry) -> None:
        self._artifact, self._entry = artifact, entry
        self.path = path
        """Its path in the artifact."""

    @property
    def name(self) -> str:
        """Its path in the artifact."""
        return self.path

    @property
    def size(self) -> int:
        """Bytes; 0 of a reference whose size is not known."""
        return self._entry.size or 0

    @property
    def digest(self) -> str:
        """Hex SHA-256 of its bytes; of a reference what is known."""
        return self._entry.digest

    @property
    def ref(self) -> str | None:
        """Where a reference points to."""
        return self._entry.ref or None

    def ref_target(self) -> str:
        """Where a reference points to.

        Raises:
            UsageError: it is none.
        """
        if not self._entry.ref:
            raise UsageError(f"expected a reference, got the file {self.path}")
        return self._entry.ref

    def download(self, root: AnyPath | None = None, skip_cache: bool | None = None, **elsewhere: Any) -> str:
        """Put it into a folder, at its path in the artifact; the file's own path."""
        del elsewhere
        folder = self._artifact.download(root, skip_cache=skip_cache, path_prefix=self.path)
        return str(Path(folder) / self.path)

    def __repr__(self) -> str:
        return f"<ArtifactFile {self.path} ({self.size} bytes)>"
