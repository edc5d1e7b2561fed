"""`sync`: what waits on this machine goes to the server, with its own times, once."""

import time

import pytest

import icecore
from icecore.errors import ServerUnreachable
from icecore.events import MetricsLogged, RunFinished, RunStarted
from icecore.segments import adopt, spools
from icecore.sync import sync


def offline_run(run_id: str, rows: int = 10) -> None:
    """A finished offline run."""
    with icecore.init(project="p", id=run_id, mode="offline") as run:
        for i in range(rows):
            run.log({"a": i})


def test_offline_runs_arrive_with_their_own_times(server, home):
    """Times are those of the logging, not of the sending."""
    before = time.time_ns() // 1_000_000
    offline_run("r")
    after = time.time_ns() // 1_000_000
    assert server.events() == []
    told = []
    (result,) = sync(home, server.url, server.key, told.append)

    assert (result.run, result.done, result.corrupt, result.refused) == ("ada/p/r", True, 0, 0)
    assert told[-1] == result
    times = [ts for event in server.events(MetricsLogged) for block in event.blocks for ts in block["ts"]]
    assert all(before <= ts <= after for ts in times)
    assert before <= server.events(RunStarted)[0].started_ts <= server.events(RunFinished)[0].finished_ts <= after
    assert spools(home / "spool") == []


def test_one_folder_or_all_of_them(server, home):
    """A spool's own folder may be named; ICECORE_DIR means all, oldest first."""
    for run_id in ("first", "second", "third"):
        offline_run(run_id)
    second = spools(home / "spool")[1]
    assert [result.run for result in sync(second, server.url, server.key)] == ["ada/p/second"]
    assert [result.run for result in sync(home, server.url, server.key)] == ["ada/p/first", "ada/p/third"]
    assert sync(home, server.url, server.key) == []


def test_no_server_is_an_error_after_a_while_and_nothing_is_lost(home, server):
    """The person at the terminal is told; the data stays."""
    offline_run("r")
    with pytest.raises(ServerUnreachable, match="icecore sync"):
        sync(home, "http://127.0.0.1:9", "key", patience=0.2)
    sync(home, server.url, server.key)

    assert len(server.rows()) == 10


def test_sending_twice_changes_nothing(server, home):
    """A spool whose acknowledgements were lost is sent whole again: the numbers are the same."""
    offline_run("r", rows=100)
    server.faults = ["lost", "lost"]
    sync(home, server.url, server.key)

    assert len(server.rows()) == 100
    assert server.conflicts == []
    assert server.gaps() == {}


def test_a_spool_that_somebody_else_is_sending_is_left_to_them(server, home):
    """Two at once do not both take it."""
    offline_run("r")
    with adopt(spools(home / "spool")[0]) as mine:
        assert mine
        assert sync(home, server.url, server.key) == []
    assert len(sync(home, server.url, server.key)) == 1


def test_a_spool_that_cannot_be_read_is_not_nothing(server, home):
    """It is left where it is, and named as not done."""
    offline_run("r")
    (folder,) = spools(home / "spool")
    (folder / "000001.seg").rename(folder / "aside")
    (folder / "000001.seg").mkdir()
    (result,) = sync(home, server.url, server.key)
    assert (result.run, result.done) == ("ada/p/r", False)

    (folder / "000001.seg").rmdir()
    (folder / "aside").rename(folder / "000001.seg")
    assert [result.done for result in sync(home, server.url, server.key)] == [True]
    assert len(server.rows()) == 10


def test_a_damaged_meta_file_costs_nothing(server, home):
    """Every frame says whose it is."""
    offline_run("r")
    (spools(home / "spool")[0] / "meta.json").write_bytes(b"\x00\x01")
    sync(home, server.url, server.key)

    assert len(server.rows("ada/p/r")) == 10


def test_refused_events_stay_with_the_servers_words(server, home):
    """The rest is sent; the folder stays for whoever looks into it."""
    offline_run("r")
    server.refused_types = {"run.finished"}
    (result,) = sync(home, server.url, server.key)
    (folder,) = spools(home / "spool")

    assert (result.refused, result.done) == (1, True)
    assert len(server.rows()) == 10
    assert [path.suffix for path in sorted((folder / "refused").iterdir())] == [".event", ".why"]


def test_a_run_whose_first_frame_is_damaged_is_still_there(server, home):
    """A damaged first frame held the run's start: it is made again from the spool's own words, before the rest."""
    offline_run("r")
    (folder,) = spools(home / "spool")
    segment = folder / "000001.seg"
    data = bytearray(segment.read_bytes())
    data[20] ^= 0xFF
    segment.write_bytes(data)
    (result,) = sync(home, server.url, server.key)

    assert result.corrupt == 1
    assert [event.run for event in server.events(RunStarted)] == ["ada/p/r"]
    assert len(server.rows()) == 10
