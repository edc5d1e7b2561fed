"""What `import icecore` costs, and what it brings in."""

import subprocess
import sys

SERVER = ("icecore_ingest", "icecore_projections", "icecore_api", "duckdb", "pyarrow", "numpy", "starlette", "fastapi")


def python(code: str) -> str:
    """What a script prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_the_import_is_quick():
    """Under 50 ms, the best of five (the machine does other things too)."""
    code = "import time; t = time.perf_counter(); import icecore; print((time.perf_counter() - t) * 1000)"

    assert min(float(python(code)) for _ in range(5)) < 50


def test_the_import_brings_in_nothing_heavy():
    """Neither a server package nor one of the client's own dependencies."""
    loaded = python("import sys, icecore; print(*sys.modules)").split()

    assert not {*SERVER, "orjson", "msgspec", "urllib3", "psutil", "rich", "click"} & set(loaded)


def test_a_run_brings_in_no_server_package(tmp_path):
    """A whole run of the client, and still no server package."""
    loaded = python(
        "import sys, icecore\n"
        f"with icecore.init(mode='offline', dir={str(tmp_path)!r}, settings={{'silent': True}}) as run:\n"
        "    run.log({'a': 1})\n"
        "print(*sys.modules)"
    ).split()

    assert not {*SERVER} & set(loaded)


def test_submodules_do_not_hide_the_functions():
    """`icecore.log`, `init`, `config`, `run` and `summary` stay what they are after their modules are imported."""
    code = (
        "import icecore, icecore.init, icecore.log, icecore.config, icecore.run, icecore.summary\n"
        "from icecore.log import EventLog\n"
        "from icecore import init, log\n"
        "print(callable(log), icecore.run, type(icecore.config).__name__, icecore.init is init)"
    )

    assert python(code) == "True None BeforeInit True"


def test_every_public_name_is_there():
    """`__all__` holds no name that cannot be had."""
    assert python("import icecore\nfor name in icecore.__all__: getattr(icecore, name)\nprint('ok')") == "ok"
