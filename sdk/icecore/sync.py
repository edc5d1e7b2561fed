"""Sending what earlier processes left behind: offline runs, and the spools of processes that were killed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from icecore.codec import decode_envelope, encode_event, frame
from icecore.config import plain
from icecore.errors import Invalid, ServerUnreachable, Unauthenticated
from icecore.events import Envelope, RunDropped, RunStarted, now_ms, split_run_path, uuid7
from icecore.segments import (
    Mark,
    Scan,
    SpoolReader,
    adopt,
    read_meta,
    refuse,
    refused,
    segments,
    spool_home,
    spools,
    write_acked,
)
from icecore.spool import Spool
from icecore.transport import BYTES_MOST, EVENTS_MOST, Sender, Transport

READABLE_WITHIN_S = 10.0
"""A run that has finished can be read by any process: it waits at most so long for that, usually some 50 ms."""
_FRESH_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one spool."""

    folder: Path
    run: str
    events: int
    bytes: int
    corrupt: int
    """Damaged places that were skipped; the rest was sent."""
    refused: int
    done: bool
    """Everything in it was acknowledged."""


def sync(
    directory: Path,
    url: str,
    key: str,
    progress: Callable[[Synced], None] | None = None,
    *,
    patience: float = 60.0,
) -> list[Synced]:
    """Send every spool that no living process holds, oldest first, and remove what the server has.

    Args:
        directory: ICECORE_DIR, or one spool's folder.
        url: the server.
        key: an API key.
        progress: is told after each batch.
        patience: seconds without any progress after which it gives up.

    Returns:
        One entry a spool that was taken up.

    Raises:
        ServerUnreachable: no batch was taken for `patience` seconds; what was sent stays sent.
        Unauthenticated: the server does not take the key.
    """
    folders = [directory] if (directory / "meta.json").exists() else spools(spool_home(directory))
    transport = Transport(url, key)
    results: list[Synced] = []
    try:
        for folder in folders:
            last: Synced | None = None
            for last in send_spool(folder, patient_sender(transport, folder, patience)):
                if progress:
                    progress(last)
            if last is not None:
                results.append(last)
    finally:
        transport.close()
    return results


def patient_sender(transport: Transport, folder: Path, patience: float) -> Sender:
    """A sender that raises after `patience` seconds without progress."""
    began = time.monotonic()
    events = 0

    def wait(seconds: float) -> bool:
        nonlocal began, events
        if sender.sent.events > events:
            events, began = sender.sent.events, time.monotonic()
        if sender.unauthorised:
            raise Unauthenticated(
                f"expected a key that {transport.url} takes: {sender.sent.trouble}", hint="`icecore login` saves one"
            )
        if time.monotonic() - began > patience:
            raise ServerUnreachable(
                f"expected {transport.url} to take data within {patience:g} s: {sender.sent.trouble}",
                hint="what was not sent stays in the spool; run `icecore sync` again",
            )
        time.sleep(min(seconds, 5.0))
        return False

    sender = Sender(transport, wait, lambda data, words: refuse(folder, data, words), say=lambda _: None)
    return sender


def send_spool(folder: Path, sender: Sender) -> Iterator[Synced]:
    """Adopt one spool and send it, yielding after each batch; nothing where a living process holds it.

    It stops early where the sender was told to stop. A spool that is wholly sent is removed.
    """
    with adopt(folder) as mine:
        if not mine or _is_new(folder):
            return
        run = str(read_meta(folder).get("run", ""))
        reader = SpoolReader(folder)
        while True:
            at_start = reader.at == Mark(0, 0)
            batch = reader.read(None, EVENTS_MOST, BYTES_MOST)
            lost_start = at_start and reader.scan.corrupt > 0 and batch.frames and not _starts(batch.frames[0])
            if lost_start and (again := _start_again(folder, run)) and not sender.send(again):
                return
            if batch.frames and not sender.send(batch.frames):
                return
            write_acked(folder, batch.end)
            if not batch.frames:
                break
            yield _state(folder, run, sender, reader.scan, done=False)
        if reader.scan.unreadable:
            yield _state(folder, run, sender, reader.scan, done=False)
            return
        if reader.scan.corrupt and not _tell(run, reader.scan, sender):
            return
        done = _state(folder, run, sender, reader.scan, done=True)
        if not refused(folder):
            shutil.rmtree(folder, ignore_errors=True)
        yield done


def _state(folder: Path, run: str, sender: Sender, scan: Scan, *, done: bool) -> Synced:
    sent = sender.sent
    return Synced(folder, run, sent.events, sent.bytes, scan.corrupt, sent.refused, done)


def _tell(run: str, scan: Scan, sender: Sender) -> bool:
    """Say on the run that a part of its spool was damaged."""
    try:
        split_run_path(run)
    except Exception:  # noqa: BLE001 - a damaged meta.json: nobody to tell it to
        return True
    reason = f"the spool was damaged in {scan.corrupt} place(s)"
    event = RunDropped(run=plain(run), reason=reason, bytes=scan.skipped_bytes)
    ts = now_ms()
    envelope = Envelope(uuid7(ts), event.TYPE, event.VERSION, uuid7(ts), 0, ts)
    return sender.send([frame(envelope, encode_event(event))])


def _starts(data: bytes) -> bool:
    return decode_envelope(data.split(b"\n", 1)[0]).type == RunStarted.TYPE


def _start_again(folder: Path, run: str) -> list[bytes]:
    """The `run.started` that a damaged first frame held, as far as it is known: else the run would be nowhere.

    It is the same producer's event 0, so should the real one turn up the two count as one.
    """
    try:
        split_run_path(run)
    except Invalid:  # a damaged meta.json as well
        return []
    started = int(read_meta(folder).get("created", 0)) or now_ms()
    event = RunStarted(run=plain(run), started_ts=started)
    envelope = Envelope(uuid7(started), event.TYPE, event.VERSION, folder.name, 0, started)
    return [frame(envelope, encode_event(event))]


def _is_new(folder: Path) -> bool:
    """A folder in the making: its writer has not got as far as its lock."""
    if (folder / "meta.json").exists() or segments(folder):
        return False
    try:
        return time.time() - folder.stat().st_mtime < _FRESH_SECONDS
    except OSError:
        return True


def orphans(directory: Path, url: str, run: str | None = None) -> list[Path]:
    """The spools that an online process may take up by itself: made for this server, not meant to stay offline.

    Args:
        directory: ICECORE_DIR.
        url: the server the process talks to.
        run: only those of this run, offline ones too.
    """
    found = []
    for folder in spools(spool_home(directory)):
        meta = read_meta(folder)
        for_us = meta.get("mode") == "online" and meta.get("url") == url
        if for_us if run is None else meta.get("run") == run:
            found.append(folder)
    return found


class Uploader:
    """The thread that sends a living spool, and then what others left behind."""

    def __init__(self, transport: Transport, spool: Spool, directory: Path) -> None:
        self._transport = transport
        self._spool = spool
        self._directory = directory
        self._stop = threading.Event()
        self.finishing = False
        """No orphans are taken up any more."""
        self.sender = Sender(transport, self._stop.wait, lambda data, words: refuse(spool.folder, data, words))
        self._thread = threading.Thread(target=self._work, name="icecore-uploader", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, within: float = 1.0, readable_within: float = 0.0) -> None:
        """End the thread; what it was sending may arrive or not, and is sent again by the next.

        Args:
            within: seconds to wait for the thread.
            readable_within: seconds to wait until what was sent can be read, where all was sent.
        """
        self._stop.set()
        self._spool.arrived.set()
        self.sender.say = lambda _: None  # what is left is said by whoever ends it
        if self._thread.is_alive():
            self._thread.join(within)
        if self.stopped:
            if not self._spool.unsent:
                self._transport.wait_readable(min(readable_within, READABLE_WITHIN_S))
            self._transport.close()

    @property
    def stopped(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def _work(self) -> None:
        left = self._orphans()
        while not self._stop.is_set():
            try:
                if self._send_own():
                    continue
                if not self.finishing and next(left, None) is not None:
                    continue
            except Exception as error:  # noqa: BLE001 - a thread of ours never ends a training, nor ends silently
                self.sender.sent.trouble = f"{type(error).__name__}: {error}"
                self.sender.say_once("broken", f"uploading met {error!r}; data is kept on disk")
                self._stop.wait(5.0)
            self._spool.arrived.wait(1.0)
            self._spool.arrived.clear()
        left.close()

    def _send_own(self) -> bool:
        batch = self._spool.read(EVENTS_MOST, BYTES_MOST)
        if not batch.frames:
            return False
        if self.sender.send(batch.frames):
            self._spool.acknowledge(batch)
        return True

    def _orphans(self) -> Generator[Synced, None, None]:
        for folder in orphans(self._directory, self._transport.url):
            if folder != self._spool.folder:
                sender = Sender(self._transport, self._stop.wait, _refuser(folder))
                yield from send_spool(folder, sender)


def _refuser(folder: Path) -> Callable[[bytes, str], None]:
    return lambda data, words: refuse(folder, data, words)
