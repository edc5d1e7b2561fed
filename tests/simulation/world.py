"""A whole icecore in one thread: clients, a network, gateways, a log and a store, and everything that befalls them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from icecore.codec import encode_event
from icecore.events import Envelope, Event, KeyCreated, KeyRevoked, UserCreated
from icecore.log import Record
from icecore.position import LEDGER, METRICS, NEVER, Token
from icecore.testing.memory_log import MemoryLog
from icecore.testing.simulation import Process, SimLoop
from icecore_ingest.identities import PLACE
from icecore_ingest.identity import sha256_hex
from icecore_projections.schema import run_number
from icecore_projections.store import Store
from simulation.clients import Client, Spool, Written
from simulation.faults import Faults
from simulation.faulty_log import FaultyLog
from simulation.light_store import Disk, rows_of
from simulation.network import Network
from simulation.nodes import GatewayNode, StoreNode

EPOCH_MS: Final = 1_700_000_000_000
PATIENCE_S: Final = 20_000.0
"""Virtual seconds within which everything must be folded after healing."""
_ANSWERS: Final = frozenset({200, 401, 429, 503})
POISON_MOST: Final = 8
STILL_S: Final = 5.0
"""After so long nothing is on its way to the log any more."""


@dataclass(frozen=True)
class Parts:
    """What a world is made of; a test of the tests puts a broken one in."""

    gateway: type[GatewayNode] = GatewayNode
    store: type[StoreNode] = StoreNode
    client: type[Client] = Client
    log: type[FaultyLog] = FaultyLog


SOUND: Final = Parts()


@dataclass
class Reads:
    """What a reader was shown of a run, and at which token."""

    token: Token = field(default_factory=Token)
    steps: frozenset[int] = frozenset()
    count: int = 0


class World:
    """One simulated life, decided by `seed`.

    Args:
        seed: decides everything.
        folder: where snapshots of identities go, in memory; with `real`, the store too.
        real: the store is a DuckDB file.
        parts: what it is made of.
    """

    def __init__(self, seed: int, folder: Path, *, real: bool = False, parts: Parts = SOUND) -> None:
        self.seed = seed
        self.chance = random.Random(f"world {seed}")
        self.faults = Faults.chosen(self.chance)
        self.loop = SimLoop(seed, jumble=self.chance.random() < 0.8, work_s=self.chance.choice([0.0, 0.05, 1.0]))
        self.log = MemoryLog({LEDGER: 1, METRICS: self.chance.randint(1, 3)})
        self.trace: list[str] = []
        self.skew: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.revoked: dict[str, int] = {}
        self.identities: dict[int, bytes] = {}
        self.reads: dict[str, Reads] = {}
        self.wrong: list[str] = []
        self.poisoned = 0
        self._parts = parts
        self._folder = folder
        self._chaos: list[asyncio.Future[None]] = []
        snapshots = self.chance.random() < 0.3
        self.gateways = [self._gateway(f"gateway{n}", snapshots) for n in range(self.chance.randint(1, 3))]
        self.network = Network(self.loop, self.gateways, self.faults, self._chance_of("network"))
        self.disk: Disk | Path = folder / "store.duckdb" if real else Disk(self.log.log_id)
        chance = self._chance_of("store")
        self.store = parts.store(
            self.loop, self._open_log, self.log, self.faults, chance, pushed=self.chance.random() < 0.4, disk=self.disk
        )
        self.store.wrong = self.wrong
        self.store.locked_out = lambda: self.say("store is locked out")
        self.spools = [self._spool(n) for n in range(self.chance.randint(1, 4))]
        self.clients: dict[str, Process | None] = {}
        self.given_up: set[str] = set()

    def run(self, check: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Live through it, then check what is left (`simulation.checks`)."""
        self.loop.run(self._live(check))

    # ----------------------------------------------------------------------------------------------- its life

    async def _live(self, check: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        await self._found()
        for node in (*self.gateways, self.store):
            node.start()
        for spool in self.spools:
            self._start_client(spool)
        await self._suffer()
        self.say("healing")
        await self._heal()
        await self._settle()
        self.say("settled")
        await check(self)

    async def _found(self) -> None:
        await self._append_system(UserCreated(user="owner"))
        for spool in self.spools:
            await self._new_key(spool.run)

    async def _suffer(self) -> None:
        actions = self._actions()
        chosen = self.chance.sample(actions, self.chance.randint(1, len(actions)))
        ends = self.chance.uniform(2.0, 40.0)
        pace = self.chance.choice([0.3, 1.0, 5.0])
        while self.loop.time() < ends:
            await asyncio.sleep(self.chance.expovariate(1 / pace))
            self._chaos.append(asyncio.ensure_future(self.chance.choice(chosen)()))

    async def _heal(self) -> None:
        for task in self._chaos:
            task.cancel()
        for outcome in await asyncio.gather(*self._chaos, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self.faults.heal()
        self.network.cut.clear()
        for node in (*self.gateways, self.store):
            if node.current is None:
                node.start()
            else:
                node.current.resume()
        for spool in self.spools:
            process = self.clients[spool.run]
            if spool.run in self.given_up:
                continue
            if process is None:
                self._start_client(spool)
            else:
                process.resume()

    async def _settle(self) -> None:
        living = [spool for spool in self.spools if spool.run not in self.given_up]
        await self._until(lambda: all(spool.done for spool in living), "every client to be rid of its spool")
        await self._until(lambda: self.store.store is not None, "the store to be open")
        self.network.closed = True
        await asyncio.sleep(STILL_S)
        end = await self.log.end()
        store = self.store.store
        assert store is not None
        assert await store.wait_async(end, PATIENCE_S), f"expected {end} to be folded, got {store.token()}"
        ledger = end.next_offset(PLACE)
        for gateway in self.gateways:
            await self._until(lambda g=gateway: g.identities is not None, f"{gateway.name} to listen")
            assert gateway.identities is not None
            assert await gateway.identities.wait_for(ledger, PATIENCE_S), f"expected {gateway.name} to know all keys"
            self.note_identities(gateway)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.loop.time() + PATIENCE_S
        while not condition():
            assert self.loop.time() < deadline, f"expected {what} within {PATIENCE_S} s"
            await asyncio.sleep(1.0)

    # --------------------------------------------------------------------------------------- what may befall it

    def _actions(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [
            self._crash_gateway,
            self._crash_store,
            self._crash_client,
            self._pause,
            self._fail_over,
            self._cut,
            self._jump_clock,
            self._rotate_key,
            self._poison,
            self._calm,
        ]

    async def _crash_gateway(self) -> None:
        gateway = self.chance.choice(self.gateways)
        if gateway.current is not None:
            self.say(f"kill {gateway.name}")
            gateway.kill()
            await self._a_while()
            if gateway.current is None:
                self.say(f"start {gateway.name}")
                gateway.start()

    async def _crash_store(self) -> None:
        if self.store.current is not None:
            self.say("kill store")
            self.store.kill()
            await self._a_while()
            if self.store.current is None:
                self.say("start store")
                self.store.start()

    async def _crash_client(self) -> None:
        spool = self.chance.choice(self.spools)
        process = self.clients[spool.run]
        if process is None:
            return
        self.say(f"kill {spool.run}")
        process.kill()
        self.clients[spool.run] = None
        if self.chance.random() < 0.1:
            self.given_up.add(spool.run)
            return
        await self._a_while()
        if self.clients[spool.run] is None:
            self._start_client(spool)

    async def _pause(self) -> None:
        nodes = [node.current for node in (*self.gateways, self.store)]
        process = self.chance.choice([*nodes, *self.clients.values()])
        if process is not None:
            self.say(f"pause {process.name}")
            process.pause()
            await self._a_while()
            self.say(f"resume {process.name}")
            process.resume()

    async def _fail_over(self) -> None:
        """A store that hangs is replaced while it may still wake up: the file belongs to it until it is dead."""
        old = self.store.current
        if old is None:
            return
        self.say("fail over store")
        old.pause()
        self.store.start()
        try:
            await self._a_while()
            old.resume()
            await self._a_while()
        finally:
            self.store.kill(old)

    async def _cut(self) -> None:
        name = self.chance.choice([node.name for node in self.gateways] + [spool.run for spool in self.spools])
        self.say(f"cut {name}")
        self.network.cut.add(name)
        await self._a_while()
        self.network.cut.discard(name)

    async def _jump_clock(self) -> None:
        name = self.chance.choice([node.name for node in self.gateways] + [spool.run for spool in self.spools])
        self.skew[name] = self.chance.choice([0, -1, 1, -3_600_000, 86_400_000, -50 * 365 * 86_400_000])
        self.say(f"clock of {name} {self.skew[name]}")

    async def _rotate_key(self) -> None:
        spool = self.chance.choice(self.spools)
        old = self.keys[spool.run]
        key_id = f"key {sha256_hex(old)[:16]}"
        offset = await self._append_system(KeyRevoked(user="owner", key_id=key_id))
        self.revoked[old] = offset
        self.say(f"key of {spool.run} revoked at {offset}")
        try:
            await self._a_while()
        finally:
            if self.keys[spool.run] == old:
                await self._new_key(spool.run)

    async def _poison(self) -> None:
        """What no client sends and no gateway lets in, from another program that writes to the log."""
        self.poisoned += 1
        if self.poisoned > POISON_MOST:
            return
        run = self.chance.choice(self.spools).run
        lengths = b'{"run":"%s","blocks":[{"step":[1],"ts":[1],"cols":{"z":[1,2]}}]}' % run.encode()
        payload = self.chance.choice([b"no json", b'{"run":7}', lengths])
        kind, v = self.chance.choice([("metrics.logged", 1), ("metrics.logged", 99), ("run.frobnicated", 1)])
        envelope = Envelope(self._uuid(), kind, v, self._uuid(), 0, EPOCH_MS)
        await self.log.append(METRICS, [Record(run, envelope, payload)])
        self.say(f"poison {kind} v{v}")

    async def _calm(self) -> None:
        """For a while nothing goes wrong by chance."""
        kept = vars(self.faults).copy()
        self.faults.heal()
        try:
            await self._a_while()
        finally:
            vars(self.faults).update(kept)

    async def _a_while(self) -> None:
        await asyncio.sleep(self.chance.choice([0.0, 0.1, 2.0, 15.0, 70.0]) * self.chance.random())

    # ------------------------------------------------------------------------------------------------- its parts

    def say(self, what: str) -> None:
        """Note what happened, for who looks into a failure."""
        self.trace.append(f"{self.loop.time():10.4f} {what}")

    def hash(self) -> str:
        """Of everything that happened: two runs of one seed have the same."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def clock(self, name: str) -> Callable[[], int]:
        """The wall clock of a machine, in ms since 1970 UTC."""
        return lambda: EPOCH_MS + int(self.loop.time() * 1000) + self.skew.get(name, 0)

    def _chance_of(self, name: str) -> random.Random:
        return random.Random(f"{name} {self.seed}")

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def _open_log(self) -> FaultyLog:
        return self._parts.log(self.loop, self.log, self.faults, self._chance_of(f"log {len(self.trace)}"))

    def _gateway(self, name: str, snapshots: bool) -> GatewayNode:
        snapshot = self._folder / f"{name}.json" if snapshots else None
        node = self._parts.gateway(self.loop, name, self._open_log, self.clock(name), snapshot)
        node.seen = lambda key: self._seen(node, key)
        return node

    def _spool(self, n: int) -> Spool:
        return Spool(f"team/sim/run{n}", self._uuid(), self.chance.randint(2, 9), self._chance_of(f"client {n}"))

    def _start_client(self, spool: Spool) -> None:
        name = spool.run
        self.say(f"start {name}")
        client = self._parts.client(name, spool, self.network, lambda: self.keys[name], self.clock(name))
        client.think_s = self.chance.choice([0.1, 1.0, 5.0])
        client.taken = lambda batch, token: self._taken(spool, batch, token)
        process = self.clients[name] = self.loop.process(name)
        process.spawn(client.run(), "run")

    async def _append_system(self, event: Event) -> int:
        envelope = Envelope(self._uuid(), event.TYPE, 1, self._uuid(), 0, EPOCH_MS, EPOCH_MS, actor="system")
        [position] = await self.log.append(LEDGER, [Record(event.key, envelope, encode_event(event))])
        return position.offset

    async def _new_key(self, run: str) -> None:
        secret = f"icecore-{self._uuid()}"
        sha = sha256_hex(secret)
        await self._append_system(KeyCreated(user="owner", key_id=f"key {sha[:16]}", sha256=sha))
        self.keys[run] = secret

    # -------------------------------------------------------------------------------- what is checked on the way

    def _seen(self, gateway: GatewayNode, key: str) -> Callable[[int], None]:
        """A request with `key` begins; the result is to be told its answer."""
        self.note_identities(gateway)
        assert gateway.identities is not None
        revoked = self.revoked.get(key, NEVER) < gateway.identities.next_offset

        def answered(status: int) -> None:
            self.say(f"{gateway.name} answers {status}")
            if status not in _ANSWERS:
                self.wrong.append(f"{gateway.name} answers {status}")
            if revoked and status != 401:
                self.wrong.append(f"{gateway.name} answers {status} to a key that it knew to be revoked")

        return answered

    def note_identities(self, gateway: GatewayNode) -> None:
        """At one offset of the ledger all gateways know the same keys."""
        assert gateway.identities is not None
        offset, state = gateway.identities.next_offset, msgspec.json.encode(gateway.identities.state)
        if self.identities.setdefault(offset, state) != state:
            self.wrong.append(f"{gateway.name} knows other identities at ledger offset {offset} than another did")

    def _taken(self, spool: Spool, batch: Sequence[Written], token: Token) -> None:
        self.say(f"{spool.run} is rid of {len(batch)}, {token}")
        node = self.store
        if spool.chance.random() < 0.2 and node.store is not None and node.serving is not None:
            node.serving.spawn(self._read(spool, node.store), "read")

    async def _read(self, spool: Spool, store: Store) -> None:
        """A read at or after what was acknowledged, and after what the same reader saw before."""
        before = self.reads.get(spool.run, Reads())
        token = spool.token.merge(before.token)
        expected = frozenset(spool.acknowledged_steps) | before.steps
        if not await store.wait_async(token, 20.0):
            return
        at = store.token()
        number = run_number(spool.run)
        series = {row["series"] for row in rows_of(store, "series") if row["run"] == number and row["key"] == "x"}
        steps = frozenset(row["step"] for row in rows_of(store, "points") if row["series"] in series)
        self.say(f"read {len(steps)} of {spool.run} at {at}")
        if expected - steps:
            self.wrong.append(f"a read of {spool.run} at {at} misses steps {sorted(expected - steps)}")
        self.reads[spool.run] = Reads(token.merge(at), steps, before.count + 1)
