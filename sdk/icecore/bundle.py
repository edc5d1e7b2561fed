"""Several versions as one: `icecore.Bundle`.

bundle = icecore.Bundle("vqa", {"images": "imgs:v3", "captions": "caps:v7", "model": "clip:v2"})
run.log_artifact(bundle, aliases=["staging"])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icecore.artifact import Artifact
from icecore.artifact_names import Name, parse_name
from icecore.errors import UsageError


class Bundle(Artifact):
    """One version made of others: one digest, aliases of its own, one folder to download. No byte is copied.

    It pins its parts: they are kept while it is there. They may be of other projects.

    Args:
        name: the name, without a version.
        parts: folder -> a version, by name (`imgs:v3`, `imgs:latest`, `team/vision/imgs:v3`) or as an artifact.
        type: what it is; the same for all versions.
        description: any text.
        metadata: any values that JSON can hold, up to 1 MB.

    Raises:
        UsageError: an argument makes no sense.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, str | Artifact],
        type: str = "bundle",  # noqa: A002 - as of an artifact
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, type, description, metadata)
        if not parts:
            raise UsageError("expected the parts of a bundle, got none", hint='{"images": "imgs:v3", …}')
        for key, part in parts.items():
            if not isinstance(part, str | Artifact):
                raise UsageError(f"expected a version's name for {key!r}, got {part!r}"[:300])
        self._wanted: dict[str, str | Artifact] = dict(parts)

    def _open_to_changes(self) -> None:
        raise UsageError(
            f"expected files in an artifact, got them for the bundle {self._base}", hint="bundle artifacts"
        )

    def _parts_for(self, run: Name) -> dict[str, str]:
        if self._doc is not None:
            return self.parts
        return {
            key: part.qualified_name if isinstance(part, Artifact) else str(parse_name(part, run.entity, run.project))
            for key, part in self._wanted.items()
        }

    @property
    def digest(self) -> str:
        """Hex SHA-256 of its manifest, once it is logged: which versions it is made of is known then."""
        return str(self._logged()["digest"])
