"""Sending: whatever the network does, everything arrives once, and nothing is given up silently."""

import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import icecore
import icecore.sync
from icecore.errors import ServerUnreachable, Unauthenticated
from icecore.events import ConsoleLogged, RunFinished
from icecore.settings import save_credentials
from icecore.testing.server import RecordingServer
from icecore.transport import Answer, Sender, Transport, _retry_after


def eventually(condition, seconds=20.0):
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "faults",
    [
        ["lost", "lost"],
        ["reset", "reset"],
        [500, 502, 503],
        [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0.1"})],
        [408],
        ["slow"],
        ["lost", "reset", 500, (429, {"Retry-After": "0"}), "slow", "lost"],
    ],
    ids=str,
)
def test_whatever_the_network_does_everything_arrives_once(server, faults):
    """Lost answers, resets, 5xx, 429 and slow answers: all rows are there, and no number names two events."""
    server.faults = list(faults)
    with icecore.init(project="p") as run:
        for i in range(500):
            run.log({"a": i})

    assert server.rows() == [(i, {"a": float(i)}) for i in range(500)]
    assert server.gaps() == {}
    assert server.conflicts == []
    assert server.faults == []
    assert len(server.events(RunFinished)) == 1


def test_retry_after_is_honoured(server):
    """The next try comes no earlier than the server asked for."""
    server.faults = [(429, {"Retry-After": "1"})]
    with icecore.init(project="p") as run:
        run.log({"a": 1})

    (first, status, _), (second, *_) = server.requests[:2]
    assert status == 429
    assert second - first >= 1.0


def test_both_forms_of_retry_after_are_read():
    """Seconds, an HTTP date, and nonsense."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert _retry_after("2.5") == 2.5
    assert 25 < _retry_after(soon) <= 30
    assert _retry_after("-3") == 0
    assert [_retry_after(text) for text in ("soon", "", None, "nan")] == [None] * 4


def test_a_refused_event_is_set_aside_and_the_rest_goes_on(server, home, capfd):
    """The event the server will never take is found by halving, kept with its words, and said once."""
    server.refused_types = {"console.logged"}
    with icecore.init(project="p") as run:
        for i in range(20):
            run.log({"a": i})
            run._emit(ConsoleLogged(run=run.path, ts=[i], stream=["stdout"], text=[f"line {i}"]))
        folder = run._recorder.spool.folder

    assert len(server.rows()) == 20
    assert len(server.events(RunFinished)) == 1
    assert len(list((folder / "refused").glob("*.event"))) == 20
    assert "takes" in next((folder / "refused").glob("*.why")).read_text()
    assert capfd.readouterr().err.count("refused an event") == 1


def test_a_wrong_key_keeps_the_data_and_says_what_to_do(server, home, monkeypatch, capfd):
    """401: one warning with the next step, nothing lost."""
    monkeypatch.setenv("ICECORE_API_KEY", "wrong")
    monkeypatch.setenv("ICECORE_FINISH_TIMEOUT", "0.5")
    with icecore.init(project="p") as run:
        run.log({"a": 1})

    error = capfd.readouterr().err
    assert error.count("does not take the key") == 1
    assert "icecore login" in error
    with pytest.raises(Unauthenticated, match="icecore login"):
        icecore.sync.sync(home, server.url, "wrong", patience=5)
    icecore.sync.sync(home, server.url, server.key)
    assert len(server.rows()) == 1


def test_another_kind_of_server_takes_nothing(server, home, monkeypatch):
    """404 from something that is no icecore server sets nothing aside: the data waits."""
    server.faults = [404] * 3
    with icecore.init(project="p") as run:
        run.log({"a": 1})

    assert len(server.rows()) == 1
    assert list((home / "spool").iterdir()) == []


def test_the_server_comes_while_the_run_goes_on(home, monkeypatch):
    """Nobody listens at init; once somebody does, everything is sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("ICECORE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("ICECORE_API_KEY", "k" * 40)
    run = icecore.init(project="p")
    for i in range(100):
        run.log({"a": i})
    eventually(lambda: run._recorder.uploader.sender.sent.trouble)
    with RecordingServer(port=port) as server:
        run.log({"a": 100})
        run.finish()
        assert len(server.rows()) == 101


def test_pauses_grow_with_full_jitter_and_are_bounded():
    """Each pause is anywhere between nothing and a ceiling that doubles up to a minute."""
    said = []
    sender = Sender(Transport("http://127.0.0.1:9", ""), wait=lambda _: False, refuse=lambda *_: None, say=said.append)
    sender.random = lambda: 1.0
    away = Answer("unreachable", "refused")
    ceilings = [sender._pause(away) for _ in range(12)]

    assert ceilings == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert len(said) == 2
    sender.random = lambda: 0.0
    assert sender._pause(away) == 0


def test_reads_say_who_did_not_answer(server):
    """A question to nobody is ServerUnreachable, to the wrong place too."""
    with pytest.raises(ServerUnreachable, match="127"):
        Transport("http://127.0.0.1:9", "").get("viewer")
    assert Transport(server.url, server.key).get("viewer") == {"user": "ada"}


def test_uploads_are_compressed_unless_the_server_is_on_this_machine(server):
    """Loopback needs no gzip; other hosts get it."""
    frames = [b'{"id":"x"}\n{}\n']
    Transport(server.url, server.key).send(frames)
    far = Transport(server.url, server.key)
    far._near = False
    far.send(frames)

    assert server.encodings == {"", "gzip"}


def test_logging_is_not_held_up_by_a_server_that_hangs(home, monkeypatch):
    """A server that accepts and never answers costs the training nothing."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("ICECORE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("ICECORE_FINISH_TIMEOUT", "0.3")
        begun = time.monotonic()
        run = icecore.init(project="p")
        for i in range(1000):
            run.log({"a": i})
        logged = time.monotonic() - begun
        run.finish()
    assert logged < 3


def test_a_key_that_is_saved_later_is_taken_up(server, home, monkeypatch):
    """A process that began before there was a key finds the one that a first `icecore up` saved meanwhile."""
    monkeypatch.delenv("ICECORE_API_KEY")
    with icecore.init(project="p", id="early") as run:
        run.log({"a": 1})
        save_credentials(server.url, server.key, "owner")

    assert len(server.rows()) == 1
