"""A drill: writers, a reader and the genuine client at work on a topology, round after round of one fault.

    with drill(topology, "kill gateway") as work:
        for chance in work.rounds():
            …hurt something…
            work.settle()

What must hold is checked when the block ends: see `faults_harness`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from faults_harness import (
    ACKNOWLEDGED_S,
    CLUSTER_ROUNDS,
    Client,
    Reader,
    Writer,
    check,
    check_log,
    check_rebuild,
    get,
    seeded,
    until,
    wait_for,
)
from icecore.position import Token
from topology import Topology, facts

WRITERS = 3
PAUSE_S = 0.2
"""Of each writer after an acknowledgement: more would cost processor time that killed processes need to come back."""
_REPORT = os.environ.get("FAULTS_REPORT", "")
"""A file that gets one line of JSON for each drill: its figures."""


@dataclass
class Drill:
    """What is at work while things break."""

    topology: Topology
    name: str
    chance: random.Random
    writers: list[Writer]
    reader: Reader
    client: Client
    began: float = field(default_factory=time.monotonic)
    began_cpu_s: float = 0.0
    round: int = 0
    settled_s: list[float] = field(default_factory=list)
    """How long each round took from the heal to a new acknowledgement of every writer that can be read."""

    def rounds(self, count: int = CLUSTER_ROUNDS) -> Iterator[random.Random]:
        """Count rounds; each is given the drill's source of chance."""
        for self.round in range(1, count + 1):
            yield self.chance

    def settle(self) -> None:
        """After a heal: every writer gets through again, and what it was told can be read."""
        began = time.monotonic()
        before = [len(writer.acknowledged) for writer in self.writers]

        def got_through() -> bool:
            self.topology.keep()
            for writer in self.writers:
                writer.raise_failure()
            return all(len(w.acknowledged) > n for w, n in zip(self.writers, before, strict=True))

        until(got_through, f"every writer to get through after round {self.round}", ACKNOWLEDGED_S)
        until(self._readable, f"a read at {self.token}", ACKNOWLEDGED_S)
        self.settled_s.append(time.monotonic() - began)

    def _readable(self) -> bool:
        self.topology.keep()
        return get(self.topology, "status", **{"Icecore-Position": str(self.token)}).status == 200

    @property
    def acknowledged(self) -> int:
        """How many events were."""
        return sum(len(writer.acknowledged) for writer in self.writers)

    @property
    def token(self) -> Token:
        """Covers everything acknowledged."""
        token = Token()
        for writer in self.writers:
            token = token.merge(writer.token)
        return token

    def finish(self) -> None:
        """Bring everything back, let everybody finish, and check all that must hold."""
        hurt_s = time.monotonic() - self.began
        self.topology.heal()
        for writer in self.writers:
            writer.finish()
        self.reader.finish()
        self.client.finish()
        wait_for(self.topology, self.token)
        check_log(self.topology.records(), self.writers)
        check(self.topology, self.writers, [self.client])
        check_rebuild(self.topology)
        self._report(hurt_s)

    def _cpu_s(self) -> float:
        """Processor time of the tests, of their children that have ended, and of what runs of the topology."""
        living = 0.0
        for pid in self.topology.pids().values():
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(pid).cpu_times()
                living += used.user + used.system
        return sum(os.times()[:4]) + living

    def _report(self, hurt_s: float) -> None:
        settled = sorted(self.settled_s) or [0.0]
        figures = {
            "fault": self.name,
            "rounds": self.round,
            "seconds": round(hurt_s, 1),
            "cpu_s": round(self._cpu_s() - self.began_cpu_s, 1),
            "events": self.acknowledged,
            "client_steps": self.client.steps,
            "reads": sum(self.reader.answers.values()),
            "slowest_event_s": round(max(writer.slowest_s for writer in self.writers), 2),
            "settled_s_median": round(settled[len(settled) // 2], 2),
            "settled_s_max": round(settled[-1], 2),
        }
        print(json.dumps(figures))
        if _REPORT:
            with Path(_REPORT).open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


@contextlib.contextmanager
def drill(topology: Topology, name: str) -> Iterator[Drill]:
    """A drill of one fault. When the block ends without an error, everything is healed and checked."""
    word = name.replace(" ", "-")
    chance = seeded(name)
    mark = f"{chance.randrange(1 << 32):08x}{time.monotonic_ns() % 1_000_000}"
    urls = topology.urls
    writers = [
        Writer(topology, f"t/{word}/{mark}-w{n}", urls=urls[n % len(urls) :] + urls[: n % len(urls)], pause_s=PAUSE_S)
        for n in range(WRITERS)
    ]
    client = Client(topology, word, f"{mark}-c", topology.folder).start()
    work = Drill(topology, name, chance, writers, Reader(writers, urls), client)
    work.began_cpu_s = work._cpu_s()
    for writer in writers:
        writer.start()
    work.reader.start()
    try:
        work.settle()
        yield work
        work.finish()
    except BaseException:
        print(f"{name}: round {work.round}; {facts(topology)}")
        client.abandon()
        for writer in writers:
            writer.abandon()
        raise
