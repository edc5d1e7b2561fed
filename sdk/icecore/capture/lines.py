"""Bytes of a terminal to lines with times, as a person would have seen them in the end."""

from __future__ import annotations

import codecs
from typing import Final, NamedTuple

from icecore.limits import most

PIECE_MOST: Final = 4 * most("text_value_bytes")


class Line(NamedTuple):
    """One line of console output, without its end."""

    ts: int
    stream: str
    text: str


class LineAssembler:
    """Puts pieces of one stream together to lines.

    A carriage return starts the line anew, so of a progress bar only its last state is kept. A line longer than
    `text_value_bytes` is cut, and says so. Colours stay.
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""
        self._cut = 0
        self._ts = 0

    def feed(self, data: bytes, ts: int) -> list[Line]:
        """The lines that `data` ends."""
        if not data:
            return []
        self._ts = ts
        *ended, rest = (self._partial + self._decoder.decode(data)).split("\n")
        lines = []
        for text in ended:
            lines.append(self._line(text))
            self._cut = 0
        self._partial = self._keep_short(rest)
        return lines

    def end(self) -> list[Line]:
        """The last line, if it was not ended."""
        text, self._partial = self._partial + self._decoder.decode(b"", final=True), ""
        lines = [self._line(text)] if text else []
        self._cut = 0
        return lines

    def _line(self, text: str) -> Line:
        return Line(self._ts, self._stream, shorten(last_state(text), self._cut))

    def _keep_short(self, text: str) -> str:
        """The unfinished line without overwritten states, and without what would be cut anyway."""
        if "\r" in text[:-1]:
            text = text[text.rstrip("\r").rfind("\r") + 1 :]
            self._cut = 0
        if len(text) > PIECE_MOST:
            self._cut += len(text) - PIECE_MOST
            text = text[:PIECE_MOST]
        return text


def last_state(text: str) -> str:
    """What a terminal shows of a line that was overwritten by carriage returns."""
    text = text.rstrip("\r")
    return text[text.rfind("\r") + 1 :]


def shorten(text: str, cut_before: int = 0) -> str:
    """The text within `text_value_bytes`, with a mark that says how many characters are missing."""
    limit = most("text_value_bytes")
    if not cut_before and len(text) * 4 <= limit:
        return text
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit and not cut_before:
        return raw.decode()
    kept = raw[: limit - 64].decode("utf-8", "ignore")
    return f"{kept} … [cut: {len(text) - len(kept) + cut_before} characters more]"
