"""How long a version lives, and what keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from icecore.util import INHERIT, ArtifactTTL, ttl_seconds

if TYPE_CHECKING:
    from icecore.artifact_home import Home
    from icecore.artifact_names import Name

_AS_IT_IS: Final = "as it is"


class Lived:
    """The part of `icecore.Artifact` that is about its time to live."""

    _doc: dict[str, Any] | None
    _wanted_ttl: timedelta | ArtifactTTL | str | None = _AS_IT_IS

    if TYPE_CHECKING:

        def _name(self) -> Name: ...
        def _here(self) -> Home: ...

    @property
    def ttl(self) -> timedelta | None:
        """How long it lives from its creation; None is for ever. Set it, then `save()`, or before it is logged.

        May be set to a `timedelta` (`icecore.util.parse_time("7d")`), to `icecore.ArtifactTTL.INHERIT`, which takes
        what the artifact, its project or its team says, or to None, which keeps it for ever.
        """
        if isinstance(self._wanted_ttl, timedelta) or self._wanted_ttl is None:
            return self._wanted_ttl
        if self._doc is None:
            return None
        seconds = self.standing()["lives"]
        return None if seconds is None else timedelta(seconds=seconds)

    @ttl.setter
    def ttl(self, ttl: timedelta | ArtifactTTL | None) -> None:
        ttl_seconds(ttl)
        self._wanted_ttl = ttl

    def standing(self) -> Mapping[str, Any]:
        """What the server says of its life: `lives` (seconds), `lives_by`, `expires_at`, `kept_by`, `state`."""
        name = self._name()
        return dict(self._here().client.ask("GET", f"{name.route}/{name.ref}/retention"))

    def _ttl_words(self) -> dict[str, int]:
        """The field of a commit; empty where nothing was said, or what is inherited anyway."""
        wanted = self._wanted_ttl
        if isinstance(wanted, str) or wanted is INHERIT:
            return {}
        seconds = ttl_seconds(wanted)
        return {} if seconds is None else {"ttl": seconds}

    def _save_ttl(self) -> None:
        """Send what was said of its time to live, where anything was."""
        wanted = self._wanted_ttl
        if isinstance(wanted, str):
            return
        body = {"scope": str(self._name()), "seconds": ttl_seconds(wanted)}
        self._here().client.ask("PUT", "retention/ttl", body=body)
        self._wanted_ttl = _AS_IT_IS
