# ruff: noqa: INP001 - a script beside the picture it makes
"""Makes docs/demo.svg, the README's picture, from what `icecore demo` really prints: `make picture`."""

from __future__ import annotations

import os
import pty
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 118
SVG = Path(__file__).parent / "demo.svg"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhlnsu]|\x1b\][^\x07]*\x07")


def played() -> str:
    """What the demo prints on a terminal."""
    heard: list[bytes] = []

    def read(fd: int) -> bytes:
        data = os.read(fd, 65536)
        heard.append(data)
        return data

    os.environ["COLUMNS"], os.environ["TERM"] = str(COLUMNS), "xterm-256color"
    data = tempfile.mkdtemp(prefix="icecore-picture-")
    words = [sys.executable, "-m", "icecore", "demo", "--no-stay", "--data", f"{data}/data"]
    if pty.spawn(words, read) != 0:
        raise SystemExit("the demo failed; its words are above")
    return b"".join(heard).decode(errors="replace").replace(data, "~/.icecore")


def lines(text: str) -> list[str]:
    """The lines that stay on screen: progress bars redraw theirs, secrets are left out."""
    kept = [line.rsplit("\r", 1)[-1] for line in _CONTROL.sub("", text.replace("\r\n", "\n")).split("\n")]
    return [line for line in kept if "training " not in line and "token=" not in line]


def main() -> None:
    """Play the demo and draw it."""
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text("$ make demo", style="bold"))
    for line in lines(played()):
        console.print(Text.from_ansi(line), soft_wrap=True)
    SVG.write_text(console.export_svg(title="icecore"), encoding="utf-8")


if __name__ == "__main__":
    main()
