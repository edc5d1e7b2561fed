"""A small disk of its own for a test, which can be full at once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

DISK_MB = 2048


class Disk:
    """A folder that is a file system of its own where we may mount one, and can be full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder]
        self.mounted = shutil.which("mount") is not None and (
            subprocess.run(words, capture_output=True, check=False).returncode == 0
        )

    def fill(self) -> None:
        """Take all the space that is left, whatever is written meanwhile."""
        while True:
            used = shutil.disk_usage(self.folder).used
            words = ["mount", "-o", f"remount,size={max(used, 4096) // 1024}k", self.folder]
            if subprocess.run(words, check=False, capture_output=True).returncode == 0:
                return  # refused where more has been written since it was asked

    def empty(self) -> None:
        """Give the space back."""
        if self.mounted:
            self._resize(f"{DISK_MB}m")

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True, capture_output=True)

    def close(self, *, keep: bool) -> None:
        """Let go of it; with `keep` its files are copied beside it."""
        if not self.mounted:
            return
        if keep:
            self.empty()
            with contextlib.suppress(shutil.Error):
                shutil.copytree(self.folder, self.folder.with_name(f"{self.folder.name}-kept"))
        subprocess.run(["umount", "-l", self.folder], check=True)
