"""Going on with a run: whether it exists, its last step, and what it was configured with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from icecore.codec import decode_envelope, frames
from icecore.config import plain
from icecore.errors import IcecoreError, ServerUnreachable, UsageError
from icecore.notes import warn
from icecore.segments import read_frames, segment_path, segments
from icecore.settings import Settings
from icecore.sync import orphans, patient_sender, send_spool
from icecore.transport import Transport

ORPHANS_SECONDS = 30.0
_ENDED = frozenset({"finished", "failed", "killed", "crashed"})


@dataclass(slots=True)
class Earlier:
    """What is known of a run from before."""

    exists: bool = False
    last_step: int = -1
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    name: str = ""


def look_up(how: str, path: str, settings: Settings, transport: Transport | None) -> Earlier:
    """What is known of the run at `path`, by the server and by the spools of this machine.

    Args:
        how: allow, must, never or auto.
        path: entity/project/run_id.
        settings: where to look.
        transport: to the server; None offline.

    Raises:
        UsageError: the run exists and must not, or does not and must.
        ServerUnreachable: it must exist, and nobody who could know is there.
    """
    earlier = _from_spools(path, settings)
    if transport is not None:
        try:
            _send_orphans(path, settings, transport)
            _from_server(path, transport, earlier)
        except IcecoreError as error:
            if how == "must" and not earlier.exists:
                raise
            if not earlier.exists:
                warn(f"cannot tell whether run {path} exists, so it goes on as a new one: {error}")
    if how == "must" and not earlier.exists:
        if transport is None:
            raise ServerUnreachable(
                f"expected run {path} to exist (resume='must'), and offline only this machine's spools can tell",
                hint="use resume='allow', or go online",
            )
        raise UsageError(f"expected run {path} to exist (resume='must'), got none", hint="use resume='allow'")
    if how == "never" and earlier.exists:
        raise UsageError(f"expected run {path} not to exist (resume='never'), got one", hint="choose another id")
    return earlier


def _send_orphans(path: str, settings: Settings, transport: Transport) -> None:
    """Send what earlier processes of this run left here, so that the server's last step is the last."""
    deadline = time.monotonic() + ORPHANS_SECONDS
    for folder in orphans(settings.dir, settings.url, path):
        sender = patient_sender(transport, folder, max(0.0, min(5.0, deadline - time.monotonic())))
        for _ in send_spool(folder, sender):
            if time.monotonic() > deadline:
                return


def warn_of_earlier(path: str, transport: Transport) -> None:
    """Say so where a run that is begun anew has ended before: its history is mixed with the new one.

    Raises:
        IcecoreError: the server does not tell.
    """
    entity, project, run_id = path.split("/")
    found = transport.get_run(entity, project, run_id, within=2.0)
    state = found.get("state") if found else None
    if found and state in _ENDED:
        warn(
            f"run {path} was there already ({state}, last step {found.get('last_step')}), and what is logged now is "
            "added to it from step 0. init(…, resume='allow') goes on after its last step; another id is another run"
        )


def _from_server(path: str, transport: Transport, earlier: Earlier) -> None:
    entity, project, run_id = path.split("/")
    found = transport.get_run(entity, project, run_id)
    if found is None:
        return
    earlier.exists = True
    last_step = found.get("last_step")
    if isinstance(last_step, int):
        earlier.last_step = max(earlier.last_step, last_step)
    if isinstance(config := found.get("config"), dict):
        earlier.config.update(config)
    if isinstance(summary := found.get("summary"), dict):
        earlier.summary.update({key: value for key, value in summary.items() if not key.startswith("_")})
    earlier.name = str(found.get("name") or earlier.name)


def _from_spools(path: str, settings: Settings) -> Earlier:
    """What unsent data on this machine says of the run."""
    earlier = Earlier()
    for folder in orphans(settings.dir, settings.url, path):
        for type_, payload in _events(folder):
            earlier.exists = True
            if type_ == "metrics.logged":
                steps = [max(block["step"]) for block in payload.get("blocks", ()) if block.get("step")]
                earlier.last_step = max([earlier.last_step, *steps])
            elif type_ == "run.started":
                earlier.config.update(payload.get("config", {}))
                earlier.name = str(payload.get("name") or earlier.name)
            elif type_ == "run.updated":
                earlier.config.update(payload.get("config", {}))
            elif type_ == "run.summarised":
                earlier.summary.update(payload.get("set", {}))
    return earlier


def _events(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number in segments(folder):
        try:
            data = segment_path(folder, number).read_bytes()
        except OSError:
            continue
        for found in read_frames(data, final=True):
            if found.frame is None:
                continue
            with contextlib.suppress(IcecoreError, ValueError):
                for envelope, payload in frames(found.frame):
                    yield decode_envelope(envelope).type, orjson.loads(payload)


# ------------------------------------------------------------------------------------------------- resume=auto


def auto_file(settings: Settings, entity: str, project: str) -> Path:
    """Where the id of the last unfinished run is kept; names are data, so the file is named by their digest."""
    digest = hashlib.sha256(f"{settings.url}\n{entity}/{project}".encode()).hexdigest()[:32]
    return settings.dir / "resume" / f"{digest}.json"


def read_auto(path: Path) -> str:
    """The run id kept, or empty."""
    try:
        return str(orjson.loads(path.read_bytes())["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_auto(path: Path, run_id: str, run_path: str) -> None:
    """Keep the run id until the run has finished well."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(orjson.dumps({"run_id": run_id, "run": plain(run_path)}))
        fresh.replace(path)
    except OSError as error:
        warn(f"{path} cannot be written ({error.strerror}): resume='auto' will not find this run again")
