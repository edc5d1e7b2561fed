"""The packages a run could import: name -> version."""

from __future__ import annotations

import importlib.metadata
from typing import Final

PACKAGES_MOST: Final = 2_000
"""More than this is not one environment, and would make the event large."""


def packages() -> dict[str, str]:
    """Installed distributions by name, sorted; of two of one name the one that would be imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.name
        version = distribution.version
        if name and version and name not in found:
            found[name] = version
        if len(found) >= PACKAGES_MOST:
            break
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
