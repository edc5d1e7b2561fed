"""`python -m icecore_api.broker fetch` gets the jars of Apache Kafka, `… java` says which Java would run them.

`fetch` also makes ready what lets every broker start in little more than half the processor time (`classes.py`).
"""

from __future__ import annotations

import sys

from icecore.errors import IcecoreError
from icecore_api.broker.classes import prepare
from icecore_api.broker.cluster import Cluster
from icecore_api.broker.jars import KAFKA_VERSION, fetch
from icecore_api.broker.java import find_java


def main(words: list[str]) -> int:
    """Run the command that `words` names; returns the exit status."""
    if words not in (["fetch"], ["java"]):
        sys.stderr.write("expected `fetch` or `java`, got " + (" ".join(words) or "nothing") + "\n")
        return 2
    try:
        java = find_java()
        if words == ["java"]:
            sys.stdout.write(f"{java}\n")
        else:
            paths = fetch(say=lambda line: print(line, flush=True))  # noqa: T201  # progress is for people
            sys.stdout.write(f"Apache Kafka {KAFKA_VERSION} is in {paths[0].parent}; Java is {java}\n")
            prepare(Cluster)
    except IcecoreError as error:
        sys.stderr.write(f"no Kafka broker: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
