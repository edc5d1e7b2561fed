"""Clocks that go wrong: the wall clock of a single process, moved while it runs."""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")


@functools.cache
def library() -> Path | None:
    """The library that moves the clock of processes it is loaded into; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    made = Path(tempfile.mkdtemp(prefix="wrong-clock-")) / "wrong_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, _SOURCE, "-ldl"], check=True)
    return made


class WrongClock:
    """The clock of one process, in a file that the process looks at whenever it asks for the time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    @property
    def env(self) -> dict[str, str]:
        """What the process must be started with."""
        made = library()
        return {} if made is None else {"LD_PRELOAD": str(made), "WRONG_CLOCK": str(self._file)}

    def jump(self, seconds: float) -> None:
        """From now on the process is so many seconds ahead of, or behind, everybody else."""
        if seconds and library() is None:
            pytest.skip("needs cc, to make a library that moves a clock")
        # in place and in one piece: the process has the file mapped
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))
