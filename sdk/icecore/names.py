"""Names for runs: an id nobody else has, and a name people can say."""

from __future__ import annotations

import hashlib
import os
from typing import Final

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST: Final = _words("""
    amber ancient azure bitter blue bold brave bright brisk calm clear cold coral crisp dawn deep distant dry eager
    early eastern even fair far fine firm first frosty gentle glad golden grand green grey hidden high icy keen kind
    late light lone long lucid mellow mild misty noble northern old open pale patient polar proud pure quick quiet
    rapid rare restless rising silent silver slow snowy soft solid southern steady still swift tall vast warm
    western white wide wild winter wise young
""")

_SECOND: Final = _words("""
    albatross anchor arch aurora basin bay beacon bear berg birch bison bluff boulder breeze brook canyon cape cedar
    channel cliff cloud comet coast cove crane creek crest current delta drift dune eagle ember falcon fern field
    fjord floe forest fox gale geyser glacier glade gorge grove gull harbor hare haven heron hill horizon island
    kelp lagoon lake lantern larch lichen lynx marsh meadow mesa moon moss mountain narwhal oak ocean orca otter owl
    peak petrel pine plain plover pond prairie puffin quartz raven reef ridge river sail salmon sea seal shore sky
    snow spring spruce star stone storm strait stream summit swan tern thunder tide trail tundra valley wave whale
    willow wind wolf wood
""")


def run_id() -> str:
    """Eight random letters and digits: among a million runs, the chance that any two are equal is 1 in 6."""
    return "".join(_ALPHABET[byte % 36] for byte in os.urandom(24) if byte < 252)[:8].ljust(8, "0")


def run_name(path: str = "") -> str:
    """Two words and a number: of a run's path always the same, so that processes that share it agree."""
    seed = hashlib.blake2b(path.encode(), digest_size=4).digest() if path else os.urandom(4)
    first, second, high, low = seed
    return f"{_FIRST[first % len(_FIRST)]}-{_SECOND[second % len(_SECOND)]}-{(high << 8 | low) % 999 + 1}"
