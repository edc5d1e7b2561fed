"""The command, the machine and the Python that a run was started with. Never the environment's secrets."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import sys
from pathlib import Path
from typing import Any, Final

JOB_VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
    "MASTER_PORT", "OMP_NUM_THREADS", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "KUBERNETES_SERVICE_HOST", "COLAB_GPU",
    "CONDA_DEFAULT_ENV", "VIRTUAL_ENV", "KERAS_BACKEND", "XLA_FLAGS", "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip
"""The only environment variables that are kept: where in a job this process stood."""

_SECRET_NAME: Final = re.compile(r"(key|token|secret|passw|credential|auth)", re.IGNORECASE)


def host_facts() -> dict[str, Any]:
    """Command line, program, working folder, host, OS, user, Python, CPU and memory, and the job's variables."""
    facts: dict[str, Any] = {
        "command": command_line(_arguments()),
        "program": _program(),
        "args": command_line(sys.argv[1:]),
        "cwd": _cwd(),
        "executable": sys.executable,
        "python": platform.python_version(),
        "python_implementation": platform.python_implementation(),
        "host": socket.gethostname(),
        "os": platform.platform(),
        "user": _user(),
        "pid": os.getpid(),
        **_hardware(),
    }
    job = {name: os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)}
    if job:
        facts["job"] = job
    return {name: value for name, value in facts.items() if value not in ("", None)}


def command_line(arguments: list[str]) -> list[str]:
    """The arguments with the value of everything that is named like a secret replaced by `***`."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_flag = argument.startswith("-") or bool(equals)
        if hide_next and not argument.startswith("-"):
            shown.append("***")
        elif is_flag and equals and _SECRET_NAME.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(argument.encode("utf-8", "replace").decode())
        hide_next = argument.startswith("-") and not equals and bool(_SECRET_NAME.search(name))
    return shown


def _arguments() -> list[str]:
    """What was typed; `sys.argv` where the interpreter did not keep it."""
    original = list(getattr(sys, "orig_argv", None) or sys.argv)
    if "-c" in original[:-1]:
        original[original.index("-c") + 1] = "…"  # a program in an argument is code, and belongs to capture_code
    return original


def _program() -> str:
    first = sys.argv[0] if sys.argv else ""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return f"-m {spec.name}" if spec is not None and first.endswith(".py") else first


def _cwd() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _hardware() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu_model": _cpu_model(),
        "cpu_count": psutil.cpu_count(logical=False),
        "cpu_count_logical": os.cpu_count(),
        "memory_bytes": int(memory.total),
    }


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
