"""Upgrades: what earlier releases wrote folds to what it folded to then."""

from __future__ import annotations

from pathlib import Path

import pytest

import golden_log
from icecore.events import EVENTS


@pytest.mark.parametrize("name", golden_log.NAMES)
@pytest.mark.parametrize("batch", [1, 5_000])
def test_an_old_log_folds_to_what_was_written_down(tmp_path: Path, name: str, batch: int) -> None:
    """The log of each version of each event gives the recorded digest and identities, in batches of any size."""
    found = golden_log.fold(name, tmp_path / "store.duckdb", batch=batch)
    recorded = golden_log.said()[name]
    assert golden_log.holds(found, recorded), f"recorded {recorded}, found {found}"


def test_every_version_of_every_event_has_a_log() -> None:
    """A new event, or a new version of one, comes with a golden log; none that was written is ever taken away."""
    missing = golden_log.versions() - {golden_log.version_of(name) for name in golden_log.NAMES}
    assert missing == set(), "tests/golden/README.md says how to add one"
    assert golden_log.said().keys() == set(golden_log.NAMES)


@pytest.mark.parametrize("name", golden_log.NAMES)
def test_a_log_has_what_it_is_named_for(name: str) -> None:
    """The version is in the log more than in name only, and nothing of it is skipped, rejected or dead."""
    kind, v = golden_log.version_of(name)
    recorded = golden_log.said()[name]
    assert (kind, v) in {(envelope.type, envelope.v) for envelope, _ in golden_log.load(name)}
    assert (recorded["dead_letters"], recorded["rejections"], recorded["skipped"]) == (0, 0, 0)


def test_a_version_without_a_log_is_noticed() -> None:
    """The list of what must have a log follows from the events themselves."""
    assert golden_log.versions() >= set(EVENTS)
    assert ("run.started", 1) in golden_log.versions()
    assert not golden_log.holds({"digest": "other"}, {"digest": "one"})
    assert golden_log.holds({"identities": {"keys": {}, "roles": {}}}, {"identities": {"keys": {}}})
