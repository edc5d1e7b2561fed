"""Clients: each writes its spool, sends it in order, and keeps everything until it is acknowledged.

How an answer is judged and how long to pause is the real client's code (`Transport._judge`, `Sender._pause`); only
its thread and its socket are not used.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from icecore.codec import encode_event, frame
from icecore.events import (
    ConsoleLogged,
    Envelope,
    Event,
    MetricsLogged,
    RunFinished,
    RunHeartbeat,
    RunStarted,
    RunSummarised,
    RunUpdated,
    SystemLogged,
)
from icecore.position import LEDGER, METRICS, Token
from icecore.transport import Answer, Sender, Transport
from simulation.network import Response

Sent = tuple[str, str, int]
"""Stream, producer, seq: what names an event."""


class Written(NamedTuple):
    """An event in the spool, as the bytes it is sent as however often."""

    name: Sent
    frame: bytes


class Net(Protocol):
    """How a client reaches a gateway."""

    async def post(self, client: str, key: str, body: bytes) -> Response:
        """One request.

        Raises:
            OSError: no answer came.
        """
        ...


@dataclass
class Spool:
    """What outlives a client's process, and what the checks know of it."""

    run: str
    producer: str
    count: int
    chance: random.Random
    written: list[Written] = field(default_factory=list)
    taken: int = 0
    """How many from the front may be forgotten, as the disk knows it."""
    acknowledged: set[Sent] = field(default_factory=set)
    token: Token = field(default_factory=Token)
    steps: int = 0
    lines_of: dict[Sent, str] = field(default_factory=dict)
    config_of: dict[Sent, int] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=lambda: {LEDGER: 0, METRICS: 0})
    acknowledged_steps: set[int] = field(default_factory=set)
    steps_of: dict[Sent, list[int]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether everything was written and taken."""
        return len(self.written) == self.count and self.taken == self.count

    def write(self, now: int) -> None:
        """Write the next event, as a script that logs would."""
        n = len(self.written)
        event = self._event(n, now)
        seq = self.seqs[event.STREAM]
        self.seqs[event.STREAM] += 1
        identity = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        envelope = Envelope(identity, event.TYPE, event.VERSION, self.producer, seq, now)
        name = (event.STREAM, self.producer, seq)
        if isinstance(event, MetricsLogged):
            self.steps_of[name] = event.blocks[0]["step"]
            self.steps += len(self.steps_of[name])
        elif isinstance(event, ConsoleLogged):
            self.lines_of[name] = event.text[0]
        elif isinstance(event, RunStarted | RunUpdated):
            self.config_of[name] = event.config["n"]
        self.written.append(Written(name, frame(envelope, encode_event(event))))

    def _event(self, n: int, now: int) -> Event:
        run, ms = self.run, max(now, 0)
        if n == 0:
            return RunStarted(run=run, started_ts=ms, config={"n": 0})
        if n == self.count - 1:
            return RunFinished(run=run, finished_ts=ms, runtime_ms=n)
        kind = self.chance.random()
        if kind < 0.5:
            steps = range(self.steps, self.steps + self.chance.randint(1, 3))
            values = [self.chance.choice([0.5, -1.5, None, float(step)]) for step in steps]
            block = {
                "step": list(steps),
                "ts": [ms] * len(steps),
                "cols": {"x": [float(s) for s in steps], "y": values},
            }
            return MetricsLogged(run=run, blocks=[block])
        if kind < 0.6:
            return ConsoleLogged(run=run, ts=[ms], stream=["stdout"], text=[f"line {n}"])
        if kind < 0.7:
            return SystemLogged(run=run, blocks=[{"step": [n], "ts": [ms], "cols": {"cpu": [n / 4]}}])
        if kind < 0.75:
            return RunHeartbeat(run=run)
        if kind < 0.8:
            return RunSummarised(run=run, set={"best": n})
        return RunUpdated(run=run, config={"n": n})


@dataclass
class Client:
    """A process that logs, and sends what it logged."""

    name: str
    spool: Spool
    net: Net
    key: Callable[[], str]
    clock: Callable[[], int]
    think_s: float = 1.0
    taken: Callable[[Sequence[Written], Token], None] = lambda _batch, _token: None
    """Is told of every acknowledgement."""

    async def run(self) -> None:
        """Go on from where the spool says, until everything is taken."""
        transport = Transport(f"http://{self.name}.invalid", "key")
        sender = Sender(transport, wait=lambda _: False, refuse=lambda _, __: None, say=lambda _: None)
        sender.random = self.spool.chance.random
        while not self.spool.done:
            await self._log()
            waiting = self.spool.written[self.spool.taken :]
            if waiting:
                batch = waiting[: self.spool.chance.randint(1, 5)]
                await self.send(transport, sender, batch)
                self.spool.taken += len(batch)

    async def _log(self) -> None:
        spool = self.spool
        await asyncio.sleep(self.think_s * spool.chance.expovariate(1.0))
        for _ in range(min(spool.count - len(spool.written), spool.chance.randint(0, 4))):
            spool.write(self.clock())

    async def send(self, transport: Transport, sender: Sender, batch: Sequence[Written]) -> None:
        """Send a batch until it is taken: the same bytes, as often as it needs."""
        while True:
            answer, token = await self.post(transport, batch)
            if answer.kind == "taken":
                sender._got_on([one.frame for one in batch])
                self.note(batch, token)
                return
            if answer.kind == "refused":
                self.spool.refused.append(answer.words)
            await asyncio.sleep(sender._pause(answer))

    async def post(self, transport: Transport, batch: Sequence[Written]) -> tuple[Answer, Token]:
        """One request, and what the real client makes of the answer."""
        try:
            response = await self.net.post(self.name, self.key(), b"".join(one.frame for one in batch))
        except OSError as error:
            return Answer("unreachable", str(error)), Token()
        answer = transport._judge(response)  # type: ignore[arg-type]
        return answer, Token.parse(response.headers.get("icecore-position", ""))

    def note(self, batch: Sequence[Written], token: Token) -> None:
        """Remember what was acknowledged."""
        for one in batch:
            self.spool.acknowledged.add(one.name)
            self.spool.acknowledged_steps.update(self.spool.steps_of.get(one.name, ()))
        self.spool.token = self.spool.token.merge(token)
        self.taken(batch, token)
