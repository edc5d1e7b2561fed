"""Identities: the fold of users, keys, login links and sessions, and what a caller may show."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.errors import Unauthenticated
from icecore.events import (
    Event,
    KeyRevoked,
    LoginOffered,
    RunHeartbeat,
    SessionClosed,
    SessionOpened,
    UserCreated,
    now_ms,
)
from icecore.log import Record
from icecore.position import LEDGER
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.identities import Identities, found_owner, system_records
from icecore_ingest.identity import (
    IdentityState,
    authenticate,
    fold,
    new_key,
    new_login_offer,
    open_session,
    sha256_hex,
)

DAY_MS = 86_400_000


def state_of(*events: Event) -> IdentityState:
    state = IdentityState()
    for event in events:
        assert fold(state, event, now_ms()) is None
    return state


def bearer(secret: str) -> bytes:
    return f"Bearer {secret}".encode()


def test_a_key_is_256_bits_and_its_secret_is_not_in_its_event() -> None:
    """A key has 43 letters and digits after its prefix, no two are the same, and the event holds only the hash."""
    keys = [new_key("ada", "laptop") for _ in range(100)]

    assert len({secret for secret, _ in keys}) == 100
    for secret, event in keys:
        assert re.fullmatch(r"icecore-[A-Za-z0-9]{43}", secret)
        assert secret not in repr(event)
        assert event.sha256 == sha256_hex(secret)


def test_a_known_key_is_its_user() -> None:
    """The caller is the key's user, the credential is the key's id."""
    secret, created = new_key("ada")
    state = state_of(UserCreated(user="ada"), created)

    assert authenticate(state, bearer(secret), None, now_ms())[:2] == ("ada", created.key_id)


def test_a_revoked_key_is_nobody() -> None:
    """From its revocation on a key is unknown; the user's other keys go on."""
    (one, first), (two, second) = new_key("ada"), new_key("ada")
    state = state_of(UserCreated(user="ada"), first, second, KeyRevoked(user="ada", key_id=first.key_id))

    with pytest.raises(Unauthenticated):
        authenticate(state, bearer(one), None, now_ms())
    assert authenticate(state, bearer(two), None, now_ms()).user == "ada"


def test_the_hash_of_a_key_is_no_key() -> None:
    """Whoever reads the log cannot call with what it holds."""
    _, created = new_key("ada")
    state = state_of(UserCreated(user="ada"), created)

    with pytest.raises(Unauthenticated):
        authenticate(state, bearer(created.sha256), None, now_ms())


def test_a_wrong_key_is_not_saved_by_a_session() -> None:
    """Where an Authorization header is given it decides alone."""
    token, offer = new_login_offer("ada")
    cookie, opened = open_session("ada", token)
    state = state_of(UserCreated(user="ada"), offer, opened)
    header = f"a=b; icecore_session={cookie}; c=d".encode()

    assert authenticate(state, None, header, now_ms()).user == "ada"
    with pytest.raises(Unauthenticated):
        authenticate(state, b"Bearer wrong", header, now_ms())


def test_a_login_link_opens_one_session() -> None:
    """The second session of the same link is rejected by the fold, and its cookie is worth nothing."""
    token, offer = new_login_offer("ada")
    (_, first), (late, second) = open_session("ada", token), open_session("ada", token)
    state = state_of(UserCreated(user="ada"), offer, first)

    assert "not used before" in (fold(state, second, now_ms()) or "")
    with pytest.raises(Unauthenticated):
        authenticate(state, None, f"icecore_session={late}".encode(), now_ms())


def test_login_links_and_sessions_end() -> None:
    """A link past its time opens nothing; a session past its time, or closed, is nobody."""
    token, offer = new_login_offer("ada", ttl_ms=1000)
    cookie, opened = open_session("ada", token, ttl_ms=DAY_MS)
    state = state_of(UserCreated(user="ada"), offer)

    assert "expired" in (fold(state, opened, offer.expires_ts) or "")
    assert fold(state, opened, offer.expires_ts - 1) is None
    header = f"icecore_session={cookie}".encode()
    assert authenticate(state, None, header, opened.expires_ts - 1)
    with pytest.raises(Unauthenticated):
        authenticate(state, None, header, opened.expires_ts)
    assert fold(state, SessionClosed(user="ada", sha256=opened.sha256), now_ms()) is None
    with pytest.raises(Unauthenticated):
        authenticate(state, None, header, now_ms())


@pytest.mark.parametrize(
    "event",
    [
        UserCreated(user="ada"),
        new_key("nobody")[1],
        KeyRevoked(user="ada", key_id="key_unknown"),
        LoginOffered(user="nobody", sha256="0" * 64, expires_ts=1 << 50),
        SessionOpened(user="ada", offer_sha256="0" * 64, sha256="1" * 64, expires_ts=1 << 50),
        SessionClosed(user="ada", sha256="1" * 64),
    ],
)
def test_what_does_not_fit_is_rejected_and_changes_nothing(event: Event) -> None:
    """A second user of one name, a key or link for nobody, an unknown session: rejected with a reason."""
    state, same = state_of(UserCreated(user="ada")), state_of(UserCreated(user="ada"))

    assert fold(state, event, now_ms())
    assert state == same


def test_one_users_session_cannot_come_from_anothers_link() -> None:
    """A session names the user the link was made for."""
    token, offer = new_login_offer("ada")
    state = state_of(UserCreated(user="ada"), UserCreated(user="eve"), offer)

    assert fold(state, open_session("eve", token)[1], now_ms())


@given(st.lists(st.binary(max_size=60), max_size=3), st.binary(max_size=60))
def test_no_header_breaks_authentication(parts: Sequence[bytes], cookie: bytes) -> None:
    """Any bytes in the headers are just somebody unknown."""
    secret, created = new_key("ada")
    state = state_of(UserCreated(user="ada"), created)
    for header in (b" ".join(parts), b"Bearer " + cookie, b"Basic " + cookie):
        with pytest.raises(Unauthenticated):
            authenticate(state, header, b"icecore_session=" + cookie, now_ms())
    assert secret


def test_the_first_start_makes_an_owner_once() -> None:
    """On a log without users there is an owner and a key, shown once; after that nothing."""

    async def run() -> None:
        log = MemoryLog()
        secret = await found_owner(log)
        assert secret is not None
        assert (await Identities.open(log)).authenticate(bearer(secret)).user == "owner"
        assert await found_owner(log) is None
        assert (await log.end()).next_offset(identities_place()) == 2

    asyncio.run(run())


def identities_place() -> object:
    from icecore_ingest.identities import PLACE

    return PLACE


def test_identities_follow_the_ledger(tmp_path: Path) -> None:
    """A key appended later works, a revoked one stops, other events and damaged payloads are passed over."""

    async def run() -> None:
        log = MemoryLog()
        identities = await Identities.open(log, tmp_path / "identities.json")
        follower = asyncio.create_task(identities.follow())
        secret, created = new_key("ada")
        records = system_records([UserCreated(user="ada"), RunHeartbeat(run="a/b/c"), created])
        broken = Record("ada", records[0].envelope, b'{"user":5}')
        await log.append(LEDGER, [broken, *records])
        assert await identities.wait_for(4, within=5)
        assert identities.authenticate(bearer(secret)).user == "ada"

        await log.append(LEDGER, system_records([KeyRevoked(user="ada", key_id=created.key_id)]))
        assert await identities.wait_for(5, within=5)
        with pytest.raises(Unauthenticated):
            identities.authenticate(bearer(secret))
        assert not await identities.wait_for(6, within=0.05)
        follower.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format":1}', b"\xff" * 100, None])
def test_a_snapshot_only_saves_time(tmp_path: Path, damage: bytes | None) -> None:
    """From a snapshot, without one, or with a damaged one: the same identities."""

    async def run() -> None:
        log, path = MemoryLog(), tmp_path / "identities.json"
        secret = await found_owner(log)
        assert secret is not None
        first = await Identities.open(log, path)
        assert path.exists()
        if damage is not None:
            path.write_bytes(damage)
        again = Identities(log, path)
        again.load()
        assert again.next_offset == (2 if damage is None else 0)
        await again.catch_up()
        assert again.state == first.state

    asyncio.run(run())


def test_a_snapshot_of_another_log_is_not_used(tmp_path: Path) -> None:
    """The snapshot names its log: a key of an earlier log in the same folder does not open this one."""

    async def run() -> None:
        old, path = MemoryLog(), tmp_path / "identities.json"
        secret = await found_owner(old)
        assert secret is not None
        await Identities.open(old, path)
        with pytest.raises(Unauthenticated):
            (await Identities.open(MemoryLog(), path)).authenticate(bearer(secret))

    asyncio.run(run())


def test_a_snapshot_beyond_a_ledger_that_lost_its_end_is_not_used(tmp_path: Path) -> None:
    """A key revoked where the lost records were is revoked, also once the ledger has grown past them again."""

    class Same(MemoryLog):
        """Logs of one id: the same log, before and after."""

        @property
        def log_id(self) -> str:
            return "one"

    async def run() -> None:
        path = tmp_path / "identities.json"
        secret, created = new_key("ada")
        kept = system_records([UserCreated(user="ada"), created])
        whole, cut = Same(), Same()
        await whole.append(LEDGER, [*kept, *system_records([RunHeartbeat(run="a/b/c")] * 3)])
        assert (await Identities.open(whole, path)).next_offset == 5
        assert (await Identities.open(whole, path)).authenticate(bearer(secret)).user == "ada"
        await cut.append(LEDGER, [*kept, *system_records([KeyRevoked(user="ada", key_id=created.key_id)])])
        snapshot = path.read_bytes()
        for _ in range(2):
            path.write_bytes(snapshot)
            with pytest.raises(Unauthenticated):
                (await Identities.open(cut, path)).authenticate(bearer(secret))
            await cut.append(LEDGER, system_records([RunHeartbeat(run="a/b/c")] * 2))

    asyncio.run(run())


def test_a_session_is_opened_through_the_ledger() -> None:
    """A link's token gives a cookie and an event; once folded the session is there, and the link is spent."""

    async def run() -> None:
        log = MemoryLog()
        identities = await Identities.open(log)
        token, offer = new_login_offer("ada")
        await log.append(LEDGER, system_records([UserCreated(user="ada"), offer]))
        await identities.catch_up()
        cookie, opened = identities.open_session(token)
        assert not identities.has_session(cookie)
        await log.append(LEDGER, system_records([opened]))
        await identities.catch_up()
        assert identities.has_session(cookie)
        for spent in (token, "unknown"):
            with pytest.raises(Unauthenticated):
                identities.open_session(spent)

    asyncio.run(run())
