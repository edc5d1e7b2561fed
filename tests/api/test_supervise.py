"""`icecore up`: one folder, one port, two processes kept alive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import urllib3

from faults_harness import get, until
from icecore.log import Record
from icecore.position import LEDGER
from icecore.testing.appender import make_record
from icecore_ingest.logs.opening import open_log
from servers import Server, clean_env, running_server


def pids(server: Server) -> dict[str, int]:
    """The process ids of supervisor, gateway and store."""
    answer = get(server, "status")
    assert answer.status == 200, answer.data
    return {name: answer.json()[name] for name in ("supervisor", "gateway", "store")}


def test_a_second_one_on_the_same_folder_is_refused(server: Server) -> None:
    """A second `icecore up` on a folder ends with an error that says who serves it and what to do."""
    done = server.run("python", "-m", "icecore", "up", "--data", str(server.data), "--port", "0", check=False)

    assert done.returncode != 0
    assert server.url in done.stderr
    assert "--data" in done.stderr


def test_a_taken_port_is_said(server: Server, tmp_path: Path) -> None:
    """A port in use is an error that names it and the option to change."""
    done = server.run(
        *("python", "-m", "icecore", "up", "--data", str(tmp_path / "d"), "--port", str(server.port)), check=False
    )

    assert done.returncode != 0
    assert str(server.port) in done.stderr
    assert "--port" in done.stderr


def test_a_folder_that_cannot_be_made_is_said(server: Server, tmp_path: Path) -> None:
    """A data folder below a file is an error that names it, without a traceback."""
    (tmp_path / "file").write_text("")
    done = server.run("python", "-m", "icecore", "up", "--data", str(tmp_path / "file" / "d"), check=False)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file" / "d") in done.stderr


def test_the_key_is_shown_on_the_first_start_only(tmp_path: Path) -> None:
    """The first line holds the key on the first start and null on the next; the saved key goes on working."""
    with running_server(tmp_path) as server:
        key = server.api_key
        assert len(key.partition("-")[2]) >= 40
        saved = json.loads((server.config_dir / "credentials.json").read_text())
        assert key in json.dumps(saved)
        assert (server.config_dir / "credentials.json").stat().st_mode & 0o077 == 0
        for path in server.data.rglob("*"):
            if path.is_file():
                assert key.encode() not in path.read_bytes(), f"the key is in {path}"
    again = Server(data=server.data, config_dir=server.config_dir).start()
    try:
        assert again.api_key == ""
        again.api_key = key
        assert get(again, "viewer").status == 200
    finally:
        assert again.stop() == 0


def test_a_killed_child_is_back_within_two_seconds(own_server: Server) -> None:
    """A gateway or store that is killed answers again within two seconds, and `status` counts the restart."""
    for victim in ("gateway", "store"):
        before = pids(own_server)
        os.kill(before[victim], signal.SIGKILL)

        def back(victim: str = victim, old: int = before[victim]) -> bool:
            answer = get(own_server, "status")
            return answer.status == 200 and answer.json()[victim] not in {None, old}

        began = time.monotonic()
        until(back, f"the {victim} to be back", 60)
        print(f"{victim} back after {time.monotonic() - began:.2f} s")

    assert get(own_server, "status").json()["restarts"] == {"gateway": 1, "store": 1}


def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    """When the supervisor is killed with -9 its children end by themselves, and the folder can be served again."""
    with running_server(tmp_path) as server:
        before = pids(server)
        children = [psutil.Process(before[name]) for name in ("gateway", "store")]
        os.kill(before["supervisor"], signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
        server.stop(kill=True)
        server.start()

        assert get(server, "status").status == 200


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    """SIGTERM ends all processes with exit status 0, and nothing of it is left running."""
    with running_server(tmp_path) as server:
        processes = [psutil.Process(pid) for pid in pids(server).values()]

        assert server.stop() == 0
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert alive == []


def test_a_store_that_keeps_dying_is_said(tmp_path: Path) -> None:
    """A store that cannot start (its log is another one) does not loop at full speed, and stderr says why."""
    with running_server(tmp_path) as server:
        pass
    (server.data / "log" / "LOG_ID").write_text("0" * 32)
    process = subprocess.Popen(
        [sys.executable, "-m", "icecore", "up", "--data", str(server.data), "--port", "0", "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=clean_env(server.config_dir),
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "another log" in line or "log_id" in line or "StoreAhead" in line or "store_ahead" in line:
            break
    process.terminate()
    process.stderr.close()

    assert process.wait(30) != -signal.SIGKILL
    assert "Traceback" not in "".join(said)


def test_the_login_link_works_once(own_server: Server) -> None:
    """The printed login link opens one session, by cookie; a second use is refused."""
    token = own_server.login_url.partition("token=")[2]
    url = f"{own_server.url}/api/v1/login"
    headers = {"Content-Type": "application/json", "Origin": own_server.url}
    first = urllib3.request("POST", url, json={"token": token}, headers=headers, retries=False)
    cookie = first.headers["Set-Cookie"]
    second = urllib3.request("POST", url, json={"token": token}, headers=headers, retries=False)
    viewer = urllib3.request("GET", f"{own_server.url}/api/v1/viewer", headers={"Cookie": cookie.split(";")[0]})

    assert first.status == 200, first.data
    assert "HttpOnly" in cookie
    assert second.status == 401, second.data
    assert viewer.json()["user"] == "owner"


def test_the_local_client_gets_a_key_for_a_new_address(tmp_path: Path) -> None:
    """A folder served again where this user has no key for the address makes one, in the ledger, and saves it."""
    with running_server(tmp_path) as server:
        pass
    (server.config_dir / "credentials.json").unlink()
    again = Server(data=server.data, config_dir=server.config_dir).start()
    try:
        saved = json.loads((server.config_dir / "credentials.json").read_text())
        again.api_key = next(iter(saved.values()))["api_key"]

        assert again.api_key != server.api_key
        assert get(again, "viewer").status == 200
    finally:
        again.stop()


def test_dead_letters_are_listed(tmp_path: Path) -> None:
    """A record that cannot be folded is in `icecore dead-letters` by its position, and `icecore status` ends with 1."""

    async def poison() -> None:
        log = await open_log(tmp_path / "data" / "log")
        started = msgspec.structs.replace(make_record("owner/p/r", 0, b"[]").envelope, type="run.started")
        await log.append(LEDGER, [Record("owner/p/r", started, b"[]")])
        await log.close()

    asyncio.run(poison())
    with running_server(tmp_path) as server:
        until(lambda: get(server, "status").json()["dead_letters"] == 1, what="the dead letter")
        assert "ledger:0:0  run.started" in server.cli("dead-letters").stdout
        assert "tried 1, folded 0" in server.cli("dead-letters", "--replay").stdout
        status = server.cli("status", check=False)
        assert (status.returncode, status.stderr) == (
            1,
            "wrong: 1 records could not be folded; next: icecore dead-letters\n",
        )


def test_a_log_with_a_mistake_in_it_does_not_bind_the_folder(tmp_path: Path) -> None:
    """After an address that no log was found at, the folder still takes another log."""
    up = (sys.executable, "-m", "icecore", "up", "--data", str(tmp_path / "data"), "--port", "0")
    for log in ("kafka://127.0.0.1:1?prefix=misspelt", "kafka://127.0.0.1:1?partitions=none"):
        command = [*up, "--log", log]
        done = subprocess.run(command, env=clean_env(tmp_path / "c"), capture_output=True, timeout=60, check=False)
        assert done.returncode != 0
    with running_server(tmp_path) as server:
        assert get(server, "status").json()["log_at"] == str(tmp_path / "data" / "log")
