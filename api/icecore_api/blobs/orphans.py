"""What interrupted uploads have left in a folder of blobs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from icecore_api.blobs.store import Orphan
from icecore_api.blobs.uploads import Uploads


def find_orphans(drafts: Path, uploads: Uploads, active: Collection[str]) -> list[Orphan]:
    """Drafts and uploads that nobody writes now.

    Args:
        drafts: the folder of the drafts.
        uploads: those by parts.
        active: names of the drafts that are being written.
    """
    found = [path for path in sorted(drafts.glob("*.draft")) if path.name not in active]
    begun = [path for path, parts in uploads.all() if not uploads.in_use(parts)]
    with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
        return [_orphan(path, "draft", [path]) for path in found] + [
            _orphan(path, "upload", list(path.iterdir())) for path in begun
        ]
    return find_orphans(drafts, uploads, active)


def remove_orphans(drafts: Path, uploads: Uploads, active: Collection[str], older_than_s: float) -> list[Orphan]:
    """Remove those not written to for so long. Answers which."""
    of_uploads = {path.name: parts for path, parts in uploads.all()}
    removed = []
    for orphan in find_orphans(drafts, uploads, active):
        if orphan.age_s < older_than_s:
            continue
        if orphan.kind == "draft":
            (drafts / orphan.name).unlink(missing_ok=True)
            removed.append(orphan)
        elif uploads.remove(of_uploads[orphan.name]):
            removed.append(orphan)
    return removed


def _orphan(path: Path, kind: Literal["draft", "upload"], files: Sequence[Path]) -> Orphan:
    stats = [path.stat(), *(file.stat() for file in files if file != path)]
    held = sum(stat.st_blocks * 512 for stat in stats)
    return Orphan(path.name, kind, held, max(0.0, time.time() - max(stat.st_mtime for stat in stats)))
