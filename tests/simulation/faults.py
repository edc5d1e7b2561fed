"""What can go wrong, and how often: one object that the seed fills and healing empties."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Self


@dataclass
class Faults:
    """Chances, from 0 to 1, of each thing going wrong once; and seconds."""

    request_lost: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    """A request arrives twice, the second time perhaps much later and elsewhere."""
    cut_short: float = 0.0
    """A connection ends within a request's body."""
    bad_gateway: float = 0.0
    """A proxy answers in the server's place, though the request may have arrived."""
    network_s: float = 0.02
    append_refused: float = 0.0
    append_unknown: float = 0.0
    """Appending fails, and the records became durable or not."""
    append_s: float = 0.01
    poisoned: float = 0.0
    """Of failed appends: the log takes nothing more until it is opened again."""
    read_failed: float = 0.0
    wait_late_s: float = 0.0
    commit_refused: float = 0.0
    commit_unknown: float = 0.0
    """Committing fails after the rows and offsets were written."""
    deliverer_wild: float = 0.0
    """A deliverer of records repeats, leaves out or forgets some."""

    @classmethod
    def chosen(cls, chance: random.Random) -> Self:
        """Of each kind none, a few or many, so that seeds differ in what goes wrong and not only in when."""
        often = {"append_s": 2.0, "network_s": 3.0, "wait_late_s": 20.0, "poisoned": 0.5, "deliverer_wild": 0.8}
        found = {}
        for field in fields(cls):
            most = often.get(field.name, 0.4)
            found[field.name] = chance.choice([0.0, 0.1 * most, most]) * chance.random()
        return cls(**found)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        for name, value in vars(Faults()).items():
            setattr(self, name, value)
