"""What an artifact needs of its surroundings: the server, the cache, and what is known of local files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from icecore.artifact_names import Name
from icecore.blob_cache import BlobCache
from icecore.downloads import Downloader
from icecore.errors import BlobsMissing
from icecore.http import JsonClient
from icecore.manifest import digest_of, encode
from icecore.settings import Settings
from icecore.stat_cache import StatCache
from icecore.transfer import BlobClient, Progress
from icecore.uploads import Source, send, upload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from icecore.manifest import Entry


@dataclass(frozen=True)
class Home:
    """A server and this machine's folders, by the settings."""

    settings: Settings

    @cached_property
    def client(self) -> JsonClient:
        """The server's API."""
        return JsonClient(self.settings.url, self.settings.key)

    @cached_property
    def blobs(self) -> BlobClient:
        """The server's blobs."""
        return BlobClient(self.settings.url, self.settings.key)

    @cached_property
    def stats(self) -> StatCache:
        """Digests of local files."""
        return StatCache(self.settings.artifact_cache / "stat.db")

    def downloader(self) -> Downloader:
        """For one download."""
        cache = BlobCache(self.settings.artifact_cache, self.settings.artifact_cache_max)
        return Downloader(self.blobs, cache, self.stats, silent=self.settings.silent)

    def staging(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for files that are made for an artifact, deleted with the answer."""
        folder = self.settings.dir / "artifacts"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)

    # ---- commands

    def commit(
        self,
        name: Name,
        entries: Mapping[str, Entry],
        sources: Mapping[str, Source],
        words: Mapping[str, Any],
        progress: Progress,
        address: str = "",
    ) -> dict[str, Any]:
        """Send what the server lacks, and make a version of it.

        Args:
            name: the artifact.
            entries: the version's content.
            sources: where the bytes of its blobs are, by digest; those of earlier versions may be left out.
            words: the other fields of the command.
            progress: is told of the bytes.
            address: the command's, where it is another than the artifact's own.

        Returns:
            The version as the server tells it.
        """
        data = encode(entries, checked=True)  # path by path when they were added; and the server checks them all
        digest = digest_of(data)
        everything = {**sources, digest: Source(digest, len(data), data=data)}
        body = {**words, "manifest": digest}
        if self.blobs.missing([digest]):
            upload(self.blobs, everything, progress)
        # else it was a version before, and its blobs are there, unless they were deleted since
        try:
            return dict(self.client.ask("POST", address or name.route, body=body))
        except BlobsMissing as error:
            lacking = [str(found) for found in error.facts.get("missing", ())]
            if not lacking or not everything.keys() >= set(lacking):
                raise
        absent = self.blobs.missing(everything).union(lacking)
        send(self.blobs, [everything[found] for found in absent], progress)
        return dict(self.client.ask("POST", address or name.route, body=body))

    def version(self, name: Name) -> dict[str, Any]:
        """The version that a name means now."""
        return dict(self.client.ask("GET", f"{name.route}/{quote(name.ref, safe='')}"))

    def use(self, name: Name, run: str) -> dict[str, Any]:
        """The same, noting that a run takes it as an input."""
        return dict(self.client.ask("POST", f"{name.route}/{quote(name.ref, safe='')}/uses", body={"run": run}))


def default_folder(name: str) -> Path:
    """Where a version is downloaded to by default."""
    import sys

    return Path("artifacts") / (name.replace(":", "-") if sys.platform == "win32" else name)
