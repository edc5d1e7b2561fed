"""The fold over retention: what keeps a version, how long it lives, and what is decided against."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact_folding import NAME, commit, folded, move, reasons, stored
from icecore.artifact_events import AliasMoved, ArtifactCommitted, ArtifactDeleted, ArtifactRestored
from icecore.events import Envelope, Event
from icecore.position import LEDGER, Position
from icecore.retention_events import (
    ArtifactErased,
    ArtifactExpired,
    ArtifactTtlSet,
    CollectionUpdated,
    HoldPlaced,
    HoldReleased,
)
from icecore_projections.folds import Applied
from icecore_projections.folds.artifacts import ArtifactChanges, ArtifactState, fold
from icecore_projections.folds.retention import (
    Keep,
    Keeping,
    RetentionChanges,
    RetentionState,
    VersionKey,
)

FIRST = f"{NAME}:v0"
DELETE = ArtifactDeleted(artifact=NAME, version=0, with_aliases=True)


def state(changes: ArtifactChanges) -> str:
    """What the first version is after all."""
    version = changes.state.versions[VersionKey(NAME, 0)]
    ended = version.ended.how if version.ended else "deleted"
    return ended if version.deleted else "committed"


def expired(seconds: int = 10, **fields: Any) -> ArtifactExpired:
    return ArtifactExpired(artifact=NAME, version=0, **{"born_ts": -seconds * 1000, "seconds": seconds, **fields})


@pytest.mark.parametrize("scope", ["ann", "ann/digits", NAME, FIRST])
def test_a_hold_beats_everything(scope: str) -> None:
    """A version within a held scope is neither deleted nor expired, until the last hold is released."""
    holds = [HoldPlaced(scope=scope, hold=name, reason="case 7") for name in ("h1", "h2")]
    start = [commit("a"), ArtifactTtlSet(scope="ann", seconds=10), *holds]
    changes = folded(*start, DELETE, expired(), HoldReleased(scope=scope, hold="h1"), DELETE)
    assert state(changes) == "committed"
    assert [("h1" in reason, "h2 (case 7)" in reason) for reason in reasons(changes)] == [
        (True, True),
        (True, True),
        (False, True),
    ]
    released = [HoldReleased(scope=scope, hold=name) for name in ("h1", "h2")]
    assert state(folded(*start, *released, DELETE)) == "deleted"


def test_a_protected_alias_keeps_what_it_names() -> None:
    """Neither deletion with aliases nor expiry takes the version, until the alias moves on."""
    start = [
        commit("a"),
        commit("b"),
        CollectionUpdated(artifact=NAME, protected=["production"]),
        move("production", 0),
    ]
    changes = folded(*start, DELETE)
    assert reasons(changes) == [
        f"expected a version that nothing keeps to delete, {FIRST} has the protected alias production"
    ]
    assert state(folded(*start, move("production", 1), DELETE)) == "deleted"


@pytest.mark.parametrize(
    ("ttls", "lives"),
    [
        ([], None),
        ([("ann", 50)], 50),
        ([("ann", 50), ("ann/digits", 40)], 40),
        ([("ann", 50), (NAME, 0)], None),
        ([("ann", 50), (NAME, 0), (FIRST, 30)], 30),
        ([("ann", 50), (FIRST, 30), (FIRST, None)], 50),
    ],
)
def test_the_narrowest_scope_says_how_long(ttls: list[tuple[str, int | None]], lives: int | None) -> None:
    """A version's own time counts before its artifact's, its project's and its team's; 0 is for ever."""
    changes = folded(commit("a"), *(ArtifactTtlSet(scope=scope, seconds=s) for scope, s in ttls))
    keeping = Keeping(RetentionState(), changes.retention)
    assert keeping.life(VersionKey(NAME, 0)).seconds == lives
    assert state(folded(commit("a"), *(ArtifactTtlSet(scope=scope, seconds=s) for scope, s in ttls), expired(30))) == (
        "expired" if lives == 30 else "committed"
    )


def test_a_version_does_not_expire_before_its_time() -> None:
    """An expiry is rejected where less time has passed than it says, or where the version lives longer by now."""
    start = (commit("a"), ArtifactTtlSet(scope=NAME, seconds=10))
    assert state(folded(*start, expired(born_ts=1000))) == "committed"
    assert reasons(folded(*start, expired(5))) == [f"expected {FIRST} to live 5 s, it lives 10 s"]
    gone = folded(*start, expired(), ArtifactRestored(artifact=NAME, version=0))
    assert state(gone) == "committed"


def test_a_time_to_live_comes_with_the_version() -> None:
    """What a commit says is the version's own; committed again without, it stays."""
    changes = folded(commit("a", ttl=10), commit("a"), ArtifactTtlSet(scope="ann", seconds=99))
    assert Keeping(RetentionState(), changes.retention).life(VersionKey(NAME, 0)) == (10, FIRST)


def test_what_is_erased_is_not_restored() -> None:
    """Once its bytes may be gone, a version comes back only by being committed again; holds come too late."""
    erased = ArtifactErased(artifact=NAME, version=0, plan="p1")
    changes = folded(commit("a"), erased, DELETE, erased, erased, ArtifactRestored(artifact=NAME, version=0))
    assert state(changes) == "erased"
    assert reasons(changes) == [
        f"expected a version that is deleted, {FIRST} is there",
        f"expected a version whose bytes are there, {FIRST} is erased",
    ]
    late = folded(commit("a"), DELETE, erased, HoldPlaced(scope=FIRST, hold="h"))
    assert reasons(late) == [f"expected a version whose bytes are there, {FIRST} is erased"]
    assert state(folded(commit("a"), DELETE, erased, commit("a"))) == "committed"
    held = folded(commit("a"), DELETE, HoldPlaced(scope=FIRST, hold="h"), erased)
    assert state(held) == "deleted"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (HoldPlaced(scope="ann/digits/x", hold="h"), "no such artifact: expected 'ann/digits/x', found none"),
        (HoldPlaced(scope=f"{NAME}:v9", hold="h"), f"no such version: expected {NAME}:v9, found none"),
        (HoldReleased(scope=NAME, hold="h"), f"no such hold: expected 'h' on {NAME}, found none"),
        (ArtifactTtlSet(scope="ann/digits/x", seconds=1), "no such artifact: expected 'ann/digits/x', found none"),
    ],
)
def test_what_is_not_there_is_neither_held_nor_limited(event: Event, reason: str) -> None:
    """An event about a scope that is not there is rejected, and changes nothing."""
    changes = folded(commit("a"), event)
    assert reasons(changes) == [reason]
    assert not changes.retention.scopes


def test_links_and_bundles_keep_a_version_until_they_let_go() -> None:
    """Keeps are added once and taken away once; while one is there the version is not deleted."""
    at = Applied(Position(LEDGER, 0, 5), Envelope("i", "t", 1, "p", 0, 0, 7, "ann"), NAME, DELETE)
    before, key = RetentionState(), VersionKey(NAME, 0)
    changes = RetentionChanges()
    keeping = Keeping(before, changes)
    for _ in range(2):
        keeping.keep(at, "link", key, by="registry/model/churn")
        keeping.keep(at, "bundle", key, by="ann/digits/vqa:v1")
    assert keeping.keeps_of(key) == [Keep("link", "registry/model/churn"), Keep("bundle", "ann/digits/vqa:v1")]
    assert [row.kept for row in changes.keeps] == [True, True]
    known = folded(commit("a")).state
    known.retention = changes.state
    kept = fold(known, [at])
    assert "the registry's registry/model/churn, the bundle ann/digits/vqa:v1" in reasons(kept)[0]
    later = Keeping(changes.state, RetentionChanges())
    later.release(at, "link", key, by="registry/model/churn")
    later.release(at, "bundle", key, by="another")
    assert later.keeps_of(key) == [Keep("bundle", "ann/digits/vqa:v1")]


NAMES = st.sampled_from([NAME, "ann/digits/x"])
SCOPES = st.sampled_from(["ann", "ann/digits", NAME, FIRST, f"{NAME}:v1", "ann/digits/x:v0"])
EVENTS_ = st.one_of(
    st.builds(
        ArtifactCommitted,
        artifact=NAMES,
        type=st.just("model"),
        digest=st.sampled_from("ab"),
        files=st.just(1),
        size=st.just(1),
        ttl=st.sampled_from([None, 0, 1]),
    ),
    st.builds(AliasMoved, artifact=NAMES, alias=st.just("p"), version=st.integers(0, 1)),
    st.builds(CollectionUpdated, artifact=NAMES, protected=st.sampled_from([[], ["p"]])),
    st.builds(ArtifactDeleted, artifact=NAMES, version=st.integers(0, 1), with_aliases=st.just(True)),
    st.builds(ArtifactRestored, artifact=NAMES, version=st.integers(0, 1)),
    st.builds(ArtifactErased, artifact=NAMES, version=st.integers(0, 1), plan=st.just("p")),
    st.builds(
        ArtifactExpired, artifact=NAMES, version=st.integers(0, 1), born_ts=st.just(0), seconds=st.integers(0, 2)
    ),
    st.builds(HoldPlaced, scope=SCOPES, hold=st.sampled_from("hi")),
    st.builds(HoldReleased, scope=SCOPES, hold=st.sampled_from("hi")),
    st.builds(ArtifactTtlSet, scope=SCOPES, seconds=st.sampled_from([None, 0, 1])),
)


@settings(max_examples=10, deadline=None)
@given(events=st.lists(EVENTS_, min_size=5, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=3))
def test_batches_do_not_matter(
    events: Sequence[Any], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the records are batched, and whatever is loaded again between, the store says the same."""
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    at = [cut for cut in cuts if cut < len(events)]
    assert asyncio.run(stored(one, events, [])) == asyncio.run(stored(many, events, at))


@settings(max_examples=100, deadline=None)
@given(events=st.lists(EVENTS_, max_size=40))
def test_what_is_kept_stays(events: Sequence[Any]) -> None:
    """After any events, a version that something keeps and that was there when it began to is still there."""
    known = ArtifactState()
    before: dict[VersionKey, bool] = {}
    for offset, event in enumerate(events):
        envelope = Envelope(f"id-{offset}", event.TYPE, 1, "p", offset, 0, 10_000 + offset, "ann")
        changes = fold(known, [Applied(Position(LEDGER, 0, offset), envelope, event.key, event)])
        known.collections.update(changes.state.collections)
        known.versions.update(changes.state.versions)
        known.digests.update(changes.state.digests)
        known.retention.scopes.update(changes.retention.state.scopes)
        keeping = Keeping(known.retention, RetentionChanges())
        for key, version in known.versions.items():
            if before.get(key):
                assert not version.deleted, event
            kept = bool(keeping.keepers(known.collections[key.artifact], key.version))
            before[key] = kept and not version.deleted and not isinstance(event, HoldReleased | CollectionUpdated)
