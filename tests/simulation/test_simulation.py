"""Thousands of simulated lives of a whole icecore, each decided by its seed alone.

A failure prints `ICECORE_SIM_SEED=n`; with that in the environment, these tests replay that seed and no other.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from simulation.checks import check
from simulation.mutants import MUTANTS
from simulation.world import SOUND, Parts, World

GROUP: Final = 50
REAL_GROUP: Final = 5
LIGHT: Final = max(2_000, 20 * int(os.environ.get("ICECORE_SOAK_ROUNDS", "0")))
REAL: Final = max(50, int(os.environ.get("ICECORE_SOAK_ROUNDS", "0")))
REPLAYED: Final = os.environ.get("ICECORE_SIM_SEED")
MUTANT_SEEDS: Final = 200
"""Within so many seeds every deliberate bug must be found."""


def groups(count: int, size: int) -> list[range]:
    """The seeds of each test, or only the one to be replayed."""
    if REPLAYED is not None:
        return [range(int(REPLAYED), int(REPLAYED) + 1)]
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where the machine has such a place: simulated disks need not survive."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


def live(seed: int, memory: Path, *, real: bool = False, parts: Parts = SOUND) -> World:
    """One life, checked.

    Raises:
        AssertionError: a promise is broken; the message has the seed and what happened before.
    """
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        world = World(seed, Path(folder), real=real, parts=parts)
        try:
            world.run(check)
        except Exception as error:
            told = "\n".join(world.trace[-40:])
            raise AssertionError(f"ICECORE_SIM_SEED={seed}{' (real store)' * real}: {error!r}\n{told}") from error
        finally:
            if world.store.store is not None:
                world.store.store.close()
    return world


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """Garbage is collected between lives, not in them: a finaliser that runs at any moment would be chance."""
    gc.collect()
    gc.freeze()
    gc.disable()
    logging.disable(logging.WARNING)  # a thousand full disks
    yield
    logging.disable(logging.NOTSET)
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("seeds", groups(LIGHT, GROUP), ids=str)
def test_nothing_is_lost_whatever_happens(memory: Path, seeds: range) -> None:
    """Whatever is killed, paused, cut, delayed, repeated or refused: after healing every promise is kept."""
    for seed in seeds:
        live(seed, memory)
    gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("seeds", groups(REAL, REAL_GROUP), ids=str)
def test_nothing_is_lost_with_a_real_store(memory: Path, seeds: range) -> None:
    """The same lives over a DuckDB file, opened anew after each crash, with the digest of a fresh fold."""
    for seed in seeds:
        live(seed, memory, real=True)
    gc.collect()


@pytest.mark.usefixtures("_no_collection")
def test_a_seed_replays_exactly(memory: Path) -> None:
    """The same seed gives the same life to the last event, also in another process with other hashes."""
    seeds = [3, 14, 15]
    first = [live(seed, memory).hash() for seed in seeds]
    assert [live(seed, memory).hash() for seed in seeds] == first
    assert len(set(first)) == len(seeds)
    program = (
        "import sys; from pathlib import Path; from simulation.test_simulation import live\n"
        "for seed in map(int, sys.argv[2:]): print(live(seed, Path(sys.argv[1])).hash())"
    )
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", program, str(memory), *map(str, seeds)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == first


@pytest.mark.usefixtures("_no_collection")
def test_lives_are_eventful(memory: Path) -> None:
    """Everything that can befall a life does, and most requests of it are answered in the end."""
    said = [line[11:] for seed in range(100) for line in live(seed, memory).trace]
    words = ("kill gateway", "kill store", "kill team", "pause gateway", "pause store", "fail over", "cut", "clock of")
    more = ("answers 200", "answers 401", "answers 503", "key of", "poison metrics.logged v1", "read ", "locked out")
    missing = [word for word in (*words, *more) if sum(line.startswith(word) or word in line for line in said) < 10]
    assert missing == []


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("wrong", MUTANTS)
def test_a_deliberate_bug_is_found(memory: Path, wrong: str) -> None:
    """A simulation that cannot fail shows nothing: each of these bugs breaks a promise within a few seeds."""
    for seed in range(MUTANT_SEEDS):
        try:
            live(seed, memory, parts=MUTANTS[wrong])
        except AssertionError as found:
            print(f"found by seed {seed}: {str(found)[:300]}")
            return
    raise AssertionError(f"expected a seed below {MUTANT_SEEDS} to find: {wrong}")
