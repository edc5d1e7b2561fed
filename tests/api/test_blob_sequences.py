"""Any sequence of storing, erasing and reopening keeps just the right blobs, and the disk has what `usage` says."""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blob_folders import digest_of, erased, everything, framed, noise, sent
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.store import Parts

T = TypeVar("T")
BASE = noise(7, 1_100_000)
SMALL = [b"", *(noise(i, 60 * i) for i in range(1, 12))]
LARGE = [noise(90, 300_000), BASE, BASE + noise(91, 90_000), b"head" + BASE, b"text," * 230_000, noise(92, 1_050_000)]
EVERY = {digest_of(content): content for content in (*SMALL, *LARGE)}

some_small = st.lists(st.sampled_from(SMALL), min_size=1, max_size=8)
one_large = st.sampled_from(LARGE)
some_blobs = st.lists(st.sampled_from(sorted(EVERY)), min_size=1, max_size=10, unique=True)


class Folder(RuleBasedStateMachine):
    """A folder of blobs, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.there: set[str] = set()
        self.touched: set[str] = set()
        self.since = math.inf
        """Those in `touched` were touched since then, the others before; infinite: nobody knows."""

    @initialize(chunked=st.booleans())
    def begin(self, *, chunked: bool) -> None:
        self.blobs = LocalBlobs(self.folder, chunked=chunked)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def came(self, *digests: str) -> None:
        self.there.update(digests)
        self.touched.update(digests)

    @rule(contents=some_small)
    def put_small(self, contents: list[bytes]) -> None:
        self.run(self.blobs.put_small(framed(contents)))
        self.came(*map(digest_of, contents))

    @rule(content=one_large | st.sampled_from(SMALL))
    def put(self, content: bytes) -> None:
        self.run(self.blobs.put(digest_of(content), sent(content, 1 << 20)))
        self.came(digest_of(content))

    @rule(content=one_large)
    def put_parts(self, content: bytes) -> None:
        parts = Parts(digest_of(content), len(content), len(content))
        self.run(self.blobs.put_part(parts, 0, sent(content, 1 << 20)))
        self.run(self.blobs.complete(parts))
        self.came(digest_of(content))

    @rule(digests=some_blobs)
    def ask(self, digests: list[str]) -> None:
        assert set(self.run(self.blobs.missing(digests))) == set(digests) - self.there
        self.touched.update(set(digests) & self.there)

    @rule()
    def time_goes_on(self) -> None:
        self.since = time.time() + 0.0001
        self.touched.clear()
        while time.time() < self.since:
            pass

    @rule(digests=some_blobs)
    def erase(self, digests: list[str]) -> None:
        promised = self.run(self.blobs.weigh(digests))
        before = self.run(self.blobs.usage()).disk
        receipts = self.run(erased(self.blobs, digests))
        assert {receipt.digest for receipt in receipts} == set(digests) & self.there
        assert sum(receipt.freed for receipt in receipts) == promised.reclaimable
        assert before - self.run(self.blobs.usage()).disk == promised.reclaimable
        self.there -= set(digests)

    @rule()
    def erase_what_was_not_touched(self) -> None:
        if self.since != math.inf:
            receipts = self.run(erased(self.blobs, sorted(EVERY), self.since))
            assert {receipt.digest for receipt in receipts} == self.there - self.touched
            self.there &= self.touched

    @rule(chunked=st.booleans(), anew=st.booleans())
    def reopen(self, *, chunked: bool, anew: bool) -> None:
        self.blobs.close()
        if anew:
            self.since = math.inf
            for index in self.folder.glob("index.db*"):
                index.unlink()
        self.blobs = LocalBlobs(self.folder, chunked=chunked)

    @rule()
    def scrub(self) -> None:
        assert list(self.blobs.scrub()) == []

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "blobs"):
            return
        usage = self.run(self.blobs.usage())
        held = [path for name in ("packs", "whole") for path in (self.folder / name).rglob("*") if path.is_file()]
        assert usage.disk == sum(path.stat().st_size for path in held)
        assert (usage.blobs, usage.logical) == (len(self.there), sum(len(EVERY[digest]) for digest in self.there))

    def teardown(self) -> None:
        names = sorted(self.there)
        assert self.run(everything(self.blobs, names)) == [EVERY[digest] for digest in names]
        assert set(self.run(self.blobs.missing(sorted(EVERY)))) == EVERY.keys() - self.there
        self.run(erased(self.blobs, names))
        assert self.run(self.blobs.usage()).disk == 0
        self.blobs.close()
        shutil.rmtree(self.folder)


TestFolder = Folder.TestCase
TestFolder.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
