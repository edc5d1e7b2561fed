"""What is captured of a run without being asked."""
# ruff: noqa: N802 - NVML's own names

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from icecore import capture
from icecore.capture.git import git_facts, without_credentials
from icecore.capture.gpu import Gpus
from icecore.capture.host import command_line, host_facts
from icecore.capture.packages import packages
from icecore.capture.system import SYSTEM_METRICS
from icecore.events import Event, RunUpdated, SystemLogged
from icecore.settings import Settings
from servers import wait_until

OFF = {"console": "off", "git": False, "metadata": False, "packages": False, "system_seconds": 0}


@dataclass
class FakeRun:
    path: str = "e/p/r"
    events: list[Event] = field(default_factory=list)

    def _emit(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q", "-b", "main")
    (tmp_path / "train.py").write_text("one\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    git("remote", "add", "origin", "https://me:s3cret@example.org/x/y.git")
    return tmp_path


def test_git_facts_of_a_clean_repository(repository: Path) -> None:
    """Commit, branch and remote are known, without the remote's password, and nothing is dirty."""
    facts = git_facts(repository, 1000)

    assert len(facts["commit"]) == 40
    assert facts["branch"] == "main"
    assert facts["remote"] == "https://example.org/x/y.git"
    assert facts["dirty"] is False
    assert "diff" not in facts
    assert "s3cret" not in str(facts)


def test_git_diff_is_kept_up_to_its_limit(repository: Path) -> None:
    """The uncommitted diff is kept whole within its limit, cut and marked beyond it, and left out at 0."""
    (repository / "train.py").write_text("one\n" + "two\n" * 1000)

    whole, cut, none = (git_facts(repository, most) for most in (1 << 18, 500, 0))

    assert whole["diff"].count("+two") == 1000
    assert "diff_truncated" not in whole
    assert len(cut["diff"].encode()) <= 500
    assert cut["diff_truncated"] is True
    assert none["dirty"] is True
    assert "diff" not in none


def test_a_diff_of_control_characters_does_not_swell_the_event(repository: Path) -> None:
    """Characters that JSON writes sixfold are cut so that the event stays small."""
    (repository / "train.py").write_text("\x01" * 9000 + "\n")

    facts = git_facts(repository, 10_000)

    assert len(orjson.dumps(facts["diff"])) <= 20_000


def test_git_facts_without_a_repository(tmp_path: Path) -> None:
    """A folder that is no repository has no git facts, and a new one without commits has no commit."""
    assert git_facts(tmp_path, 1000) == {}

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert "commit" not in git_facts(tmp_path, 1000)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://user:pass@h.org/a/b.git", "https://h.org/a/b.git"),
        ("https://ghp_abcdefghijklmnop1234@h.org/a", "https://h.org/a"),
        ("https://h.org/a.git?token=abc#x", "https://h.org/a.git"),
        ("https://h.org/ghp_abcdefghijklmnop1234/a", "https://h.org/***/a"),
        ("git@github.com:me/repo.git", "git@github.com:me/repo.git"),
        ("ssh://git@h.org:22/a", "ssh://git@h.org:22/a"),
        ("me:secret@h.org:a/b", "h.org:a/b"),
        ("/srv/git/a.git", "/srv/git/a.git"),
        ("https://u:p@@h.org/a", "https://h.org/a"),
        ("http://[bad", ""),
    ],
)
def test_remotes_lose_their_credentials(given: str, kept: str) -> None:
    """Nothing secret of a remote's URL is kept."""
    assert without_credentials(given) == kept


def test_secrets_on_the_command_line_are_hidden() -> None:
    """The value of an argument named like a secret is not kept; others are."""
    given = ["train.py", "--lr", "0.1", "--api-key", "abc", "--db_password=xyz", "--tokens", "-v", "HF_TOKEN=q"]
    kept = ["train.py", "--lr", "0.1", "--api-key", "***", "--db_password=***", "--tokens", "-v", "HF_TOKEN=***"]

    assert command_line(given) == kept


def test_host_facts_name_the_machine_and_no_environment() -> None:
    """Host, Python, user, CPU and memory are known; the environment is not kept but for the job's variables."""
    code = (
        "import sys, orjson; from icecore.capture.host import host_facts; "
        "sys.stdout.buffer.write(orjson.dumps(host_facts()))"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "AWS_SECRET": "hush",
        "SLURM_JOB_ID": "77",
        "WORLD_SIZE": "4",
        "USER": "ann",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    facts: dict[str, Any] = orjson.loads(done.stdout)

    assert facts["job"] == {"SLURM_JOB_ID": "77", "WORLD_SIZE": "4"}
    assert b"hush" not in done.stdout
    assert "orjson.dumps" not in str(facts["command"])
    assert {"host", "os", "python", "executable", "cwd", "cpu_count_logical", "memory_bytes"} <= facts.keys()
    assert facts["memory_bytes"] == host_facts()["memory_bytes"]


def test_packages_have_versions() -> None:
    """Installed packages are listed by name with their version, in order."""
    found = packages()

    assert found["orjson"] == orjson.__version__
    assert list(found) == sorted(found, key=str.lower)


def test_facts_follow_the_start(repository: Path) -> None:
    """Starting returns before facts are known; they follow as one update of the run's metadata."""
    run = FakeRun()
    begun = time.perf_counter()
    captured = capture.start(run, Settings.load({**OFF, "git": True, "metadata": True, "packages": True}))
    took = time.perf_counter() - begun
    captured.stop()
    updates = [event for event in run.events if isinstance(event, RunUpdated)]

    assert took < 0.5
    assert len(updates) == 1
    assert {"host", "packages", "git", "command"} <= updates[0].metadata.keys()


def test_everything_can_be_switched_off() -> None:
    """With every capture off no event is made and no thread is started."""
    run = FakeRun()
    captured = capture.start(run, Settings.load(OFF))
    captured.stop()

    assert run.events == []


def test_system_metrics_are_sampled_until_stopped() -> None:
    """Samples have a time, a counting step and finite named values; the last one is made by stopping."""
    run = FakeRun()
    captured = capture.start(run, Settings.load({**OFF, "system_seconds": 0.05}))
    wait_until(lambda: len(run.events) >= 2, what="two samples")
    captured.stop()
    stopped = len(run.events)
    captured.stop()
    blocks = [event.blocks[0] for event in run.events if isinstance(event, SystemLogged)]

    assert len(run.events) == stopped == len(blocks) >= 3
    assert [block["step"] for block in blocks] == [[n] for n in range(len(blocks))]
    assert all(abs(block["ts"][0] / 1000 - time.time()) < 60 for block in blocks)
    names = blocks[-1]["cols"].keys()
    assert {"system.cpu", "system.memory", "process.rss_bytes", "process.threads"} <= names
    known = {name for name in SYSTEM_METRICS if not name.startswith("gpu.")}
    assert {name for name in names if not name.startswith("gpu.")} <= known
    assert blocks[-1]["cols"]["process.rss_bytes"][0] > 1e6


class TwoGpus:
    """NVML of a machine with two GPUs, the second of which does not tell its power."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.open = False

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"GPU " + str(handle).encode()

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=1000, used=250 * (handle + 1))

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12040

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=90 - handle)

    def nvmlDeviceGetTemperature(self, handle: int, _sensor: int) -> int:
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle:
            raise RuntimeError("not supported")
        return 300_000


def test_gpus_are_described_and_sampled() -> None:
    """Each GPU's name, memory and driver are facts; what it tells is sampled, what it does not is left out."""
    nvml = TwoGpus()
    gpus = Gpus(nvml)
    facts, sample = gpus.facts(), gpus.sample()
    gpus.close()

    assert facts["gpus"][1] == {"name": "GPU 1", "memory_bytes": 1000, "uuid": "GPU-1"}
    assert (facts["gpu_count"], facts["gpu_driver"], facts["cuda"]) == (2, "550.1", "12.4")
    assert sample["gpu.0.power"] == 300.0
    assert sample["gpu.1.memory"] == 50.0
    assert (sample["gpu.1.util"], sample["gpu.1.temperature"]) == (89.0, 61.0)
    assert "gpu.1.power" not in sample
    assert {name.replace(".0.", ".N.") for name in sample if ".0." in name} == {
        name for name in SYSTEM_METRICS if name.startswith("gpu.")
    }
    assert not nvml.open
    assert gpus.sample() == {}


def test_no_gpu_is_silent() -> None:
    """Where NVML is missing or broken there are no GPUs, and nothing is said."""
    gpus = Gpus(SimpleNamespace())

    assert gpus.facts() == {}
    assert gpus.sample() == {}
