"""The client's command line, against a server that says what the contract says."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from answering import AnsweringServer, Asked, Reply, answering
from icecore.cli import EXIT_CODES
from icecore.cli.chart import line_chart, spark
from icecore.cli.docs import client_command_names, render
from icecore.cli.group import SERVER_COMMANDS
from icecore.cli.output import clean, shown
from servers import clean_env

RUN: dict[str, Any] = {
    "path": "e/p/r0",
    "entity": "e",
    "project": "p",
    "id": "r0",
    "name": "calm-\x1b]0;owned\x07river",
    "group": "g",
    "job_type": "train",
    "tags": ["a"],
    "notes": "",
    "user": "ann",
    "state": "running",
    "exit_code": None,
    "error": None,
    "created_at": "2026-01-01T00:00:00Z",
    "heard_at": None,
    "last_step": 7,
    "config": {"lr": 0.1},
    "metadata": {"git": {"commit": "abc", "dirty": True}},
    "url": "http://x/r",
    "summary": {"_step": 7, "_runtime": 3725.0, "loss": 0.5},
    "runtime": 3725.0,
    "points": 9,
    "finished_at": None,
}
EVENT = {
    "stream": "ledger",
    "partition": 0,
    "offset": 1,
    "key": "e/p/r0",
    "payload": {"run": "e/p/r0"},
    "envelope": {"id": "i", "type": "run.started", "v": 1, "ts_server": 1_700_000_000_000},
}


@pytest.fixture
def said() -> Iterator[AnsweringServer]:
    with answering() as server:
        other = {**RUN, "path": "e/p/r1", "id": "r1", "config": {"lr": 0.2}, "state": "finished"}
        rows = b"".join(
            json.dumps({"_step": n, "_timestamp": n, "_runtime": n, "loss": 1 / (n + 1)}).encode() + b"\n"
            for n in range(50)
        )
        series = [{"run": "e/p/r0", "key": "loss", "x": list(range(20)), "last": [n * n for n in range(20)]}]

        def console(asked: Asked) -> Reply:
            lines = [
                {"off": 1, "line": n, "ts": 5, "stream": s, "text": f"line {n}"}
                for n, s in enumerate(["stdout", "stderr"])
            ]
            if "after" in asked.query:
                RUN["state"] = "finished"
                lines.append(
                    {"off": 2, "line": 0, "ts": 6, "stream": "stdout", "text": "\x1b[31mred\x1b[0m\x1b[2J end"}
                )
                return Reply({"lines": lines, "next": None})
            return Reply({"lines": lines, "next": "1-1"})

        def log(asked: Asked) -> Reply:
            events = [{**EVENT, "offset": n} for n in (0, 1, 2) if n >= int(asked.query["start"])]
            events = events[: int(asked.query["limit"])]
            return Reply({"events": events, "next": events[-1]["offset"] + 1 if events else 3, "end": 3})

        status = {
            "gateway": 1,
            "store": 2,
            "log": {"ledger:0": 3},
            "folded": {"ledger:0": 3},
            "lag": 0,
            "dead_letters": 0,
        }
        server.answers = {
            "GET viewer": lambda a: (
                Reply({"user": "ann", "key_id": "k", "version": "1"})
                if a.headers.get("authorization") == "Bearer good"
                else Reply({"error": {"code": "unauthenticated", "message": "expected a key, got none"}}, 401)
            ),
            "GET status": lambda _: Reply({**status, "rejections": 0, "skipped": 0, "data": "/d"}),
            "GET projects": lambda _: Reply({"projects": [{"entity": "e", "project": "p", "runs": 2, "last_ts": 5}]}),
            "GET runs/e/p": lambda _: Reply({"runs": [RUN, other], "cursor": None, "count": 2, "facets": {}}),
            "GET runs/e/q": lambda _: Reply({"runs": [], "cursor": None, "count": 0, "facets": {}}),
            "GET runs/e/p/r0": lambda _: Reply(RUN),
            "GET runs/e/p/r0/history": lambda _: Reply(rows),
            "GET projects/e/p/history": lambda _: Reply(b"run,key\n"),
            "GET runs/e/p/r0/console": console,
            "GET log": log,
            "POST series": lambda _: Reply({"series": series}),
        }
        RUN["state"] = "running"
        yield server


@pytest.fixture
def icecore(said: AnsweringServer, tmp_path: Path) -> Any:
    def run(*words: str, code: int = 0, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
        ours = {"ICECORE_URL": said.url, "ICECORE_DIR": str(tmp_path / "spool"), "ICECORE_API_KEY": "good"}
        env = clean_env(tmp_path / "config", **{**ours, **extra})
        done = subprocess.run(
            [sys.executable, "-m", "icecore", *words],
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert code in EXIT_CODES
        return done

    return run


def test_help_is_quick_and_lists_every_command(icecore: Any) -> None:
    """The help names all commands with a line each and the exit codes, and imports none of them."""
    code = (
        "import sys; from icecore.cli import run\n"
        "run(['--help'])\n"
        "heavy = {'rich', 'urllib3', 'psutil', 'icecore.api', 'icecore_api'} & set(sys.modules)\n"
        "sys.stderr.write(repr(sorted(heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    for name in [*client_command_names(), *SERVER_COMMANDS]:
        assert re.search(rf"^  {name}  ", done.stdout, re.MULTILINE), name
    assert all(meaning in done.stdout for meaning in EXIT_CODES.values())
    assert done.stderr == "[]"


def test_every_command_has_examples_and_json() -> None:
    """Each command's help ends with examples, and each takes --json."""
    sections = re.split(r"^## icecore", render(), flags=re.MULTILINE)[2:]

    for section in sections:
        name = section.split("\n", 1)[0].strip()
        if name.split()[0] not in client_command_names():
            continue
        assert "Examples:" in section, name
        assert "--json" in section or "COMMAND [ARGS]" in section, name


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["runs"],
        ["runs", "e/p"],
        ["run", "e/p/r0"],
        ["run", "show", "e/p/r0"],
        ["history", "e/p/r0"],
        ["history", "e/p/r0", "--out", "h.csv"],
        ["console", "e/p/r0"],
        ["log", "tail"],
        ["log", "stat"],
        ["log", "show", "ledger:0:1"],
        ["sync"],
        ["login"],
    ],
)
def test_json_is_one_document(icecore: Any, words: list[str]) -> None:
    """With --json stdout is one JSON document, without colours or progress."""
    done = icecore(*words, "--json", stdin="good\n")

    assert isinstance(json.loads(done.stdout), dict)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"log_trouble": "log_away: nobody answers"}, "wrong: the log: log_away: nobody answers"),
        ({"folding": {"state": "halted", "reason": "poison"}}, "wrong: folding is halted: poison"),
        ({"dead_letters": 4}, "wrong: 4 records could not be folded; next: icecore dead-letters"),
    ],
)
def test_status_says_what_is_wrong(icecore: Any, said: AnsweringServer, wrong: dict[str, Any], text: str) -> None:
    """Status names what a person should look at, and ends with 1; as JSON the answer alone says it."""
    well = said.answers["GET status"](Asked("GET", "status", {}, {}, None)).body
    said.answers["GET status"] = lambda _: Reply({**well, **wrong})
    assert text in icecore("status", code=1).stderr
    assert json.loads(icecore("status", "--json").stdout)["dead_letters"] == wrong.get("dead_letters", 0)


def test_runs_in_a_pipe_are_a_plain_table(icecore: Any) -> None:
    """Without a terminal: a table without colours or charts, and without what would steer a terminal."""
    out = icecore("runs", "e/p").stdout

    assert "\x1b" not in out
    assert "calm-river" in out
    assert "owned" not in out
    assert "1h 2m" in out
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["r0", "r1"]


def test_runs_passes_filter_and_order_on(icecore: Any, said: AnsweringServer) -> None:
    """--filter, --order and --limit reach the server."""
    icecore("runs", "e/p", "--filter", '{"config.lr": {"$lt": 1}}', "--order", "-summary_metrics.loss", "--limit", "1")
    query = said.asked[-1].query

    assert json.loads(query["filters"]) == {"config.lr": {"$lt": 1}}
    assert (query["order"], query["limit"]) == ("-summary_metrics.loss", "1")


def test_runs_without_a_path(icecore: Any) -> None:
    """Without a path the projects are listed, or the runs of ICECORE_PROJECT."""
    assert "e/p" in icecore("runs").stdout
    assert "r1" in icecore("runs", ICECORE_PROJECT="e/p").stdout


def test_run_shows_config_summary_and_git(icecore: Any) -> None:
    """One run's state, config, summary and commit, a line each."""
    out = icecore("run", "e/p/r0").stdout

    for words in (
        r"state +running",
        r"config\.lr +0\.1",
        r"summary\.loss +0\.5",
        r"git\.commit +abc",
        r"git\.dirty +true",
    ):
        assert re.search(words, out), words


def test_history_to_a_file(icecore: Any, said: AnsweringServer, tmp_path: Path) -> None:
    """--out streams the server's answer to the file, in the format of its ending, and leaves nothing else."""
    done = icecore("history", "e/p/r0", "--keys", "loss,a", "--out", "h.parquet", "--min-step", "3")

    assert (tmp_path / "h.parquet").read_bytes().count(b"\n") == 50
    assert said.asked[-1].query == {"keys": '["loss","a"]', "format": "parquet", "min_step": "3"}
    assert str((tmp_path / "h.parquet").stat().st_size) in done.stdout
    icecore("history", "e/p", "--out", "all.csv")
    assert said.asked[-1].path == "projects/e/p/history"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["all.csv", "h.parquet"]


def test_a_failed_export_leaves_no_file(icecore: Any, said: AnsweringServer, tmp_path: Path) -> None:
    """An export that fails neither makes the file nor changes the one that is there."""
    (tmp_path / "h.csv").write_text("old")
    said.answers["GET runs/e/p/r0/history"] = lambda _: Reply({"error": {"code": "invalid", "message": "no"}}, 422)
    icecore("history", "e/p/r0", "--out", "h.csv", code=2)
    icecore("history", "e/p/r0", "--out", "h.xlsx", code=2)

    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.is_file()] == [("h.csv", "old")]


def test_history_in_a_pipe(icecore: Any) -> None:
    """Rows evenly over the run, with their keys as columns, and a word on what is not shown."""
    done = icecore("history", "e/p/r0")

    assert done.stdout.splitlines()[0].split() == ["_step", "_runtime", "loss"]
    assert done.stdout.splitlines()[-1].split()[0] == "49"
    assert "12 of 50 rows" in done.stderr


def test_history_says_which_keys_have_no_values(icecore: Any) -> None:
    """A key without a value is named, with the keys that the run has."""
    done = icecore("history", "e/p/r0", "--keys", "lost,loss")

    assert "no values of lost; the run has loss" in done.stderr


def test_console_follow_ends_with_the_run(icecore: Any) -> None:
    """--follow prints every line once, to the stream it came from, until the run has ended."""
    done = icecore("console", "e/p/r0", "--follow")

    assert done.stdout == "line 0\nred end\n"
    assert done.stderr == "line 1\n"


def test_console_follow_ends_with_the_last_line(icecore: Any, said: AnsweringServer) -> None:
    """Once the run has ended, its console is read as far as the log goes, though the end was folded first."""
    icecore("console", "e/p/r0", "--follow")

    pages = [asked for asked in said.asked if asked.path.endswith("/console")]
    assert pages[-1].headers.get("icecore-position") == "ledger:0:3"


def test_log_tail_and_show(icecore: Any) -> None:
    """Tail shows the last events a line each; show the whole of one."""
    lines = icecore("log", "tail", "-n", "2").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["ledger:0:1", "ledger:0:2"]
    assert json.loads(icecore("log", "show", "ledger:0:2").stdout)["offset"] == 2
    assert "the log's end at 3" in icecore("log", "show", "ledger:0:9", code=5).stderr


def test_login_saves_a_key_that_works(icecore: Any, said: AnsweringServer, tmp_path: Path) -> None:
    """A key that the server takes is saved for this user only; one that it does not take is not."""
    icecore("login", "--key", "-", code=4, stdin="bad\n", ICECORE_API_KEY="")
    assert not (tmp_path / "config" / "credentials.json").exists()
    icecore("login", "--key", "-", stdin="good\n", ICECORE_API_KEY="")
    saved = tmp_path / "config" / "credentials.json"

    assert json.loads(saved.read_text())[said.url] == {"api_key": "good", "user": "ann"}
    assert saved.stat().st_mode & 0o077 == 0
    icecore("runs", ICECORE_API_KEY="")
    assert said.asked[-1].headers["authorization"] == "Bearer good"


ERRORS = [
    (["runs", "--limit", "x"], 2, "--limit"),
    (["runs", "e/p", "--filter", "{"], 2, "expected --filter as JSON"),
    (["runs", "a/b/c"], 2, "expected a project path"),
    (["nothing"], 2, "No such command"),
    (["run"], 2, "RUN"),
    (["run", "e/p/nope"], 5, "expected a known path"),
    (["runs", "e/q"], 5, "expected a project that has runs, got e/q"),
    (["log", "show", "here"], 2, "expected a position"),
    (["login", "--key", "-"], 2, "expected an API key"),
    (["artifact", "show", "e/p/.."], 2, "expected names other than . and .."),
    (["artifact", "show", "e/p/\udcff"], 2, "expected text in UTF-8"),
    (["hold", "add", "e/\udcff", "--reason", "x"], 2, "expected what can be sent as JSON"),
]


@pytest.mark.parametrize(("words", "code", "text"), ERRORS)
def test_errors_say_the_next_step(icecore: Any, words: list[str], code: int, text: str) -> None:
    """Errors go to stderr as "error: …" and "next: …", end with their code, and are JSON on stdout with --json."""
    done = icecore(*words, code=code)
    with_json = icecore(*words, "--json", code=code)

    assert done.stdout == ""
    assert re.fullmatch(r"error: .+\nnext: .+\n", done.stderr), done.stderr
    assert text in done.stderr
    assert text in json.loads(with_json.stdout)["error"]["message"]


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 5), (409, 1), (422, 2), (500, 6)])
def test_exit_codes_of_refusals(icecore: Any, said: AnsweringServer, status: int, code: int) -> None:
    """Each kind of refusal has its exit code."""
    said.answers["GET status"] = lambda _: Reply({"error": {"code": "x", "message": "m", "hint": "h"}}, status)

    assert "error: m\n" in icecore("status", code=code).stderr


def test_no_server(icecore: Any) -> None:
    """Where nothing listens the exit code is 3, and the next step is to start one."""
    done = icecore("status", code=3, ICECORE_URL="http://127.0.0.1:9")

    assert "next: start one with `icecore up`" in done.stderr


def test_a_closed_pipe_is_no_error(icecore: Any, said: AnsweringServer, tmp_path: Path) -> None:
    """`icecore log tail | head -1` ends quietly."""
    env = clean_env(tmp_path, ICECORE_URL=said.url, ICECORE_API_KEY="good")
    command = f"{sys.executable} -m icecore log tail --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], env=env, capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"{", b"")


def test_the_server_commands_say_what_to_install(tmp_path: Path) -> None:
    """Without the server installed, `icecore up` says which package has it."""
    code = "from icecore.cli import run; import sys; sys.exit(run(['up']))"
    command = [sys.executable, "-c", f"import importlib.metadata as m; m.entry_points = lambda **_: []\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_env(tmp_path))

    assert done.returncode == 2
    assert (
        done.stderr
        == "error: `icecore up` needs the server, which is not installed\nnext: pip install 'icecore[server]'\n"
    )


def on_a_terminal(words: list[str], env: dict[str, str], columns: int = 100) -> str:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, columns))
    process = subprocess.Popen(
        [sys.executable, "-m", "icecore", *words], stdout=slave, stderr=slave, stdin=slave, env=env
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(20) == 0, shown
    return shown.decode()


@pytest.mark.parametrize("words", [["runs", "e/p"], ["history", "e/p/r0"]])
def test_a_terminal_gets_colours_and_a_chart(said: AnsweringServer, tmp_path: Path, words: list[str]) -> None:
    """On a terminal, runs and history draw a table and a line chart within its width; NO_COLOR takes the colours."""
    env = {**clean_env(tmp_path, ICECORE_URL=said.url, ICECORE_API_KEY="good"), "TERM": "xterm-256color"}
    plain = on_a_terminal(words, env)
    del env["NO_COLOR"]
    coloured = on_a_terminal(words, env)

    assert re.search("[\u2801-\u28ff]{3}", plain)
    assert max(map(len, clean(plain).split("\r\n"))) <= 100 or "\r\n" not in clean(plain)
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]m", plain)
    assert re.search(r"\x1b\[[0-9;]*3[1-7]m", coloured)
    assert "owned" not in coloured


# ----------------------------------------------------------------------------------------------------- charts


def chart_text(lines: list[list[tuple[str, int]]]) -> list[str]:
    return ["".join(part for part, _ in line) for line in lines]


def test_a_line_chart_rises_from_left_to_right() -> None:
    """A rising line has its first dots at the bottom left and its last at the top right, with the axes' ends."""
    text = chart_text(line_chart({"a": [(float(x), float(x)) for x in range(100)]}, width=40, height=5))

    assert len(text) == 6
    assert text[0].startswith(" 99│")
    assert text[0][-1] != " "
    assert text[4].startswith("  0│")
    assert text[4][4] != " "
    assert text[0][4] == " "
    assert text[5].strip().startswith("└0")
    assert text[5].endswith("99")
    assert {len(line) for line in text[:5]} == {40}


@pytest.mark.parametrize(
    "points",
    [
        [(0.0, 5.0)],
        [(0.0, 1.0), (0.0, 1.0)],
        [(0.0, float("nan")), (1.0, 2.0), (2.0, float("inf"))],
        [(0.0, -1e300), (1.0, 1e300)],
    ],
)
def test_strange_points_can_be_drawn(points: list[tuple[float, float]]) -> None:
    """One point, equal points, values that are not finite, and huge ones do not break a chart."""
    assert len(line_chart({"a": points})) == 11


def test_nothing_is_drawn_of_nothing() -> None:
    """Without a finite point there is no chart and no spark."""
    assert line_chart({"a": [(0.0, float("nan"))], "b": []}) == []
    assert spark([]) == ""
    assert spark([0.0, 1.0, float("nan"), 0.5]) == "▁█ ▅"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123_456_789.0, "123456789"),
        (1_795_261_057.276, "1795261057"),
        (0.123456789, "0.12346"),
        (12.5, "12.5"),
        (-0.0, "-0"),
        (1e300, "1e+300"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_count_keeps_its_digits(value: float, text: str) -> None:
    """Integers and times are shown whole, other numbers to five digits."""
    assert shown(value) == text


def test_text_cannot_steer_the_terminal() -> None:
    """Escape sequences and control characters are taken out; colours stay only where they are wanted."""
    text = "a\x1b[31mred\x1b[0m\x1b[2J\x1b]0;title\x07\x07b\x9b1m\tc\x1bM"

    assert clean(text) == "aredb1m\tc"
    assert clean(text, colours=True) == "a\x1b[31mred\x1b[0mb1m\tc"
