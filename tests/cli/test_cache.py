"""Compiled programs are kept by the command line, where the user says, and not by the library."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import jaxlib
import numpy
import pytest
import scipy

import scoremle
from scoremle import devices
from scoremle.cli import cache
from scoremle.cli import main as cli
from scoremle.cli.commands import env, parser_of
from scoremle.errors import UserError


def process(code: str, **variables: str) -> str:
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")} | variables
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)


def test_the_command_line_keeps_what_it_compiled(tmp_path):
    """And finds it again; the library alone keeps nothing."""
    code = (
        "import scoremle, jax, jax.numpy as jnp\n"
        "assert jax.config.jax_compilation_cache_dir is None\n"
        "from scoremle.cli.cache import keep_programs\n"
        "keep_programs()\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))\n"
        "jax.jit(lambda x: jnp.linalg.svd(x @ x)[0])(jnp.ones((3, 3)))\n"
        "print('/jax/compilation_cache/cache_hits' in hits)"
    )
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    assert process(code, **home) == "False\n"
    (folder,) = (tmp_path / "scoremle" / "programs").iterdir()
    kept = sorted(path.name for path in folder.glob("*-cache"))
    assert kept
    assert process(code, **home) == "True\n"
    assert sorted(path.name for path in folder.glob("*-cache")) == kept
    off = {"XDG_CACHE_HOME": str(tmp_path / "off"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    process(code, **off)
    assert not (tmp_path / "off").exists()


def test_each_kind_of_processor_has_its_programs(monkeypatch):
    """Programs are for its instructions, which ARM lists by another name."""
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "1")
    folders = set()
    for line in ("flags: sse2 avx2", "flags: sse2", "Features: fp sve", "Features: fp"):
        monkeypatch.setattr(cache.Path, "read_text", lambda path, line=line: f"cpu: 0\n{line}")
        folders.add(cache.programs_folder())
    assert len(folders) == 4


def before_jax(monkeypatch, **variables: str) -> None:
    """As in a process that has not loaded JAX, with no variables of its cache but these."""
    monkeypatch.delitem(sys.modules, "jax")
    for name in (cache.FOLDER, cache.LEAST[0]):
        monkeypatch.delenv(name)
    for name, value in {cache.SWITCH: "true", **variables}.items():
        monkeypatch.setenv(name, value)


def test_what_the_user_set_stays(monkeypatch, tmp_path):
    before_jax(monkeypatch, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="mine")
    cache.keep_programs()
    assert os.environ[cache.FOLDER] == "mine" and not list(tmp_path.iterdir())
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv(cache.LEAST[0], "7")
    cache.keep_programs()
    assert os.environ[cache.LEAST[0]] == "7"
    assert os.environ[cache.FOLDER] == str(cache.programs_folder())


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "scoremle").write_text("a file")
    before_jax(monkeypatch, XDG_CACHE_HOME=str(tmp_path))
    cache.keep_programs()
    assert cache.FOLDER not in os.environ


def test_env_says_what_a_report_needs(capsys):
    assert cli.main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    for name in ("device 0", "memory", "prepared data sets"):
        assert facts[name]
    assert facts["scoremle"] == scoremle.__version__
    assert facts["python"] == platform.python_version()
    for module in (jax, jaxlib, flax, numpy, scipy):
        assert facts[module.__name__] == module.__version__
    assert facts["compiled programs"].startswith(os.environ[cache.FOLDER])
    assert facts[cache.FOLDER] == os.environ[cache.FOLDER]
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = ["what", "----", "", "settings:"]
    assert len(lines) == len(facts) + len(heads)
    assert any(line.startswith("device 0 ") for line in lines)


def test_env_lists_the_settings_that_somebody_made(monkeypatch, capsys):
    monkeypatch.delenv(cache.FOLDER)
    options = parser_of("env").parse_args([])
    monkeypatch.setenv(cache.FOLDER, "as keep_programs sets it")
    env.run(options)
    assert f"{cache.FOLDER}=" not in capsys.readouterr().out


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("opened", ["", "scoremle/programs", "scoremle"])
def test_programs_of_a_folder_that_others_can_write_to_are_not_run(
    opened, named, monkeypatch, tmp_path, caplog
):
    before_jax(monkeypatch, XDG_CACHE_HOME=str(tmp_path))
    folder = cache.programs_folder()
    folder.mkdir(0o700, parents=True)
    if named:
        monkeypatch.setenv(cache.FOLDER, str(folder))
    place = tmp_path / opened if opened else folder
    place.chmod(0o777)
    cache.keep_programs()
    assert os.environ[cache.SWITCH] == "false" and f"write to {place}" in caplog.text
    monkeypatch.setenv(cache.SWITCH, "true")
    place.chmod(0o1777)  # sticky: others can't replace what lies there
    cache.keep_programs()
    assert os.environ[cache.SWITCH] == ("true" if opened else "false")


def test_a_folder_of_another_user_is_not_used(monkeypatch, tmp_path, caplog):
    before_jax(monkeypatch, XDG_CACHE_HOME=str(tmp_path))
    cache.programs_folder().mkdir(parents=True)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    cache.keep_programs()
    assert cache.FOLDER not in os.environ and "are not kept" in caplog.text


def test_the_folder_is_made_for_the_user_alone(monkeypatch, tmp_path):
    before_jax(monkeypatch, XDG_CACHE_HOME=str(tmp_path))
    cache.keep_programs()
    assert cache.programs_folder().stat().st_mode & 0o777 == 0o700


def test_env_names_what_is_missing(monkeypatch):
    def none():
        raise UserError("JAX finds no device")

    monkeypatch.setattr(devices, "check_devices", none)
    assert env._devices() == {"devices": "none: JAX finds no device"}
    assert env._version("scoremle-of-nobody") == "not installed"
    settings = {"jax_compilation_cache_dir": "x", "jax_enable_compilation_cache": False}
    monkeypatch.setattr(jax, "config", SimpleNamespace(**settings))
    assert env._programs().startswith("not kept")


def test_memory_is_named_whole_and_then_free(monkeypatch):
    there = devices.Memory(31 * 2**29, 5 * 2**29)
    monkeypatch.setattr(devices, "memory_of_machine", lambda: there)
    assert env._memory() == "15.5 GiB, 2.5 GiB free"


@pytest.mark.parametrize(
    ("stats", "found"),
    [({"bytes_limit": 100, "bytes_in_use": 30}, devices.Memory(100, 70)),
     ({"bytes_limit": 100}, devices.Memory(100, 100)), ({"num_allocs": 3}, None)],
)  # fmt: skip
def test_memory_of_a_gpu_is_what_its_driver_allows_less_what_is_in_use(stats, found, monkeypatch):
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(devices.jax, "local_devices", lambda: [gpu])
    assert devices.memory() == found


@pytest.mark.parametrize(
    ("files", "limit", "found"),
    [
        ({}, -1, (8000, 4000)),
        ({"meminfo": "MemFree: 1 kB\nMemAvailable: 5 kB"}, -1, (8000, 5120)),
        ({"memory.max": "max", "memory.current": "9"}, -1, (8000, 4000)),
        ({"memory.max": "7000", "memory.current": "500"}, -1, (7000, 4000)),
        ({"memory.max": "7000", "memory.current": "6500"}, -1, (7000, 500)),
        ({"memory.max": "9000", "memory.current": "6500"}, -1, (8000, 2500)),
        ({"memory.max": "7000", "memory.current": "6500",
          "memory.stat": "active_file 9\ninactive_file 2000\n"}, -1, (7000, 2500)),
        ({"statm": "5 3 2"}, 7000, (7000, 2000)),
        ({"statm": "5 3 2"}, 9500, (8000, 4000)),
        ({}, 7000, (8000, 4000)),
    ],
)  # fmt: skip
def test_memory_of_a_machine_is_no_more_than_a_container_and_a_limit_leave(
    files, limit, found, monkeypatch, tmp_path
):
    counts = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 8, "SC_AVPHYS_PAGES": 4}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setattr(devices.os, "sysconf", counts.__getitem__)
    monkeypatch.setattr(devices.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(devices.resource, "getpagesize", lambda: 1000)
    assert devices.memory_of_machine() == found


def test_memory_that_the_system_does_not_tell_is_unknown(monkeypatch):
    monkeypatch.setattr(devices.os, "sysconf", lambda name: int("unknown"))
    assert devices.memory_of_machine() is None and devices.memory() is None
    assert env._memory() == "unknown"


def test_a_limit_that_leaves_no_room_to_compile_is_a_line(monkeypatch):
    room = iter([2 << 30, (2 << 30) - 1])
    monkeypatch.setattr(devices, "_address_space", lambda: devices.Memory(3 << 30, next(room)))
    devices.check_devices()
    with pytest.raises(UserError, match=r"3 GiB \(ulimit"):
        devices.check_devices()


def test_arrays_that_do_not_fit_into_memory_are_not_placed(monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(99, 20))
    array = numpy.arange(5, dtype=numpy.float32)
    assert devices.placed({"a": array})["a"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="free"):
        devices.placed([array, array[:1]])
