"""The light store says what the real one says."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

import goldens
from histories import append, doubled, sample, shuffled, to_records
from icecore.position import LEDGER, METRICS
from icecore.testing.memory_log import MemoryLog
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store
from simulation.light_store import Disk, LightStore


@pytest.mark.parametrize(("batch", "partitions"), [(1, 1), (7, 3), (5_000, 2)])
def test_a_light_store_has_the_digest_of_a_real_one(tmp_path: Path, batch: int, partitions: int) -> None:
    """The same records make the same rows, offsets and digest in both, folded in batches of any size."""
    records = doubled(shuffled(to_records(sample(steps=40)), 1), 1)

    async def work() -> None:
        log = MemoryLog({LEDGER: 1, METRICS: partitions})
        await append(log, records)
        light = LightStore(Disk(log.log_id))
        with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id=log.log_id)) as real:
            for store in (real, light):
                await Runner(log, store, records=batch).catch_up()
            assert digest_of(light) == digest_of(real)
            for query in goldens.QUERIES.values():
                with real.reading() as one, light.reading() as other:
                    assert goldens._told(one, query) == goldens._told(other, query)
            assert LightStore(light.disk).token() == real.token()

    asyncio.run(work())
