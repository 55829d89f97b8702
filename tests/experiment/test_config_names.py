"""Which config ``--config`` means: a name from anywhere, a path, a file of the published form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scoremle.errors import UserError
from scoremle.experiment import defaults
from scoremle.experiment.config import (
    NAMED_CONFIGS,
    load_config,
    published_config,
    recorded_config,
    with_defaults,
)

ROOT = Path(__file__).resolve().parents[2]
VP = "vp/cifar10_ddpmpp_continuous"


def failure(place: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(place)
    assert "\n" not in str(error.value)
    return str(error.value)


def resolved(place: str, **fields) -> dict:
    config, resolve = load_config(place)
    config.update_from_flattened_dict(fields)
    resolve(config)
    return config.to_dict()


def test_a_published_path_is_a_name():
    """Fields and ``resolve``: both weightings are what ImageNet's asks for."""
    both = {"training.likelihood_weighting": True, "training.importance_weighting": True}
    for name in NAMED_CONFIGS:
        assert resolved(f"configs/{name}.py", **both) == resolved(name, **both)


def test_the_case_of_a_name_does_not_matter():
    assert load_config("Digits")[0].data.dataset == "digits"


def test_a_name_means_no_file_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.py", "my_py", "my.pyc"):
        Path(name).write_text("raise ValueError('run')")
    assert load_config("digits")[0].data.dataset == "digits"
    for name in ("my_py", "my.pyc"):
        assert failure(name).startswith(f"unknown config '{name}'")
    assert failure("digits.py") == "digits.py, line 1: ValueError: run"


def test_a_name_that_is_none():
    assert failure("fashion_mnits") == (
        "unknown config 'fashion_mnits'; did you mean fashion_mnist? "
        f"there are: {', '.join(NAMED_CONFIGS)}"
    )


def test_a_file_at_a_published_path_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(f"configs/{VP}.py")
    path.parent.mkdir(parents=True)
    path.write_text("raise ValueError('run')")
    assert failure(str(path)).endswith("line 1: ValueError: run")
    assert failure("configs/none.py").startswith("no file configs/none.py (looked for ")


# Files of the published form

PUBLISHED = "from configs import default\ndef get_config(): return default.get_config()\n"


def test_a_file_imports_from_the_checkout_it_lies_in(tmp_path):
    """Though ``configs`` of another is importable; and the path is then as it was."""
    checkout = tmp_path / "checkout"
    (checkout / "configs" / "mine").mkdir(parents=True)
    (checkout / "configs" / "__init__.py").touch()
    (checkout / "configs" / "default.py").write_text(
        "from scoremle.experiment import defaults\n"
        "def get_config():\n"
        "    config = defaults.get_config()\n"
        "    config.seed = 7\n"
        "    return config\n"
    )
    for file in (checkout / "mine.py", checkout / "configs" / "mine" / "a.py"):
        file.write_text(PUBLISHED)
        code = (
            "import sys\nfrom scoremle.experiment.config import load_config\n"
            f"before = [*sys.path]\nprint(load_config({str(file)!r})[0].seed, sys.path == before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout == "7 True\n", done.stderr


def test_a_file_that_lies_in_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "configs", None)  # as where there is none
    (tmp_path / "mine.py").write_text(PUBLISHED)
    path = [*sys.path]
    assert failure(str(tmp_path / "mine.py")).endswith(
        "; write: from scoremle.experiment import defaults as default"
    )
    assert sys.path == path


# What a config becomes


def test_a_file_may_have_a_rule_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from scoremle.experiment import defaults\nget_config = defaults.get_config\n"
        "def resolve(config):\n    config.training.smallest_time = config.seed / 4\n"
        "    defaults.resolve(config)\n"
    )
    training = resolved(str(tmp_path / "mine.py"), seed=1)["training"]
    assert training["smallest_time"] == 0.25


def test_a_file_may_give_a_frozen_config(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ml_collections import FrozenConfigDict\n"
        "from scoremle.experiment import defaults\n"
        "def get_config():\n    return FrozenConfigDict(defaults.get_config())\n"
    )
    assert resolved(str(tmp_path / "mine.py"), seed=3)["seed"] == 3


def test_a_published_config_with_fields_set():
    config = published_config("subvp/imagenet32_ddpmpp_deep_continuous", {"model.nf": 8})
    assert (config.model.nf, config.model.num_res_blocks) == (8, 8)
    assert (config.training.smallest_time, config.data.dataset) == (1e-2, "ImageNet")


def test_a_config_of_an_earlier_version_gets_the_defaults_of_newer_fields():
    old = resolved("digits")
    del old["eval"]["suite"], old["deq"]
    config = with_defaults(old)
    assert config.eval.suite is False and config.deq == defaults.get_config().deq
    assert config.model.nf == 16


@pytest.mark.parametrize("name", NAMED_CONFIGS)
def test_a_recorded_config_is_the_one_that_was_written(name, tmp_path):
    """Types too; and what was derived follows the fields that are changed afterwards."""
    changes = {"sampling.method": "ddim", "eval.bpd_dataset": "train", "eval.dequantizer": True}
    for before in ({}, {"sampling.steps": 7}, changes):
        config, resolve = load_config(name)
        config.update_from_flattened_dict(before)
        resolve(config)
        (tmp_path / "config.json").write_text(config.to_json())
        recorded = recorded_config(tmp_path)
        assert recorded == config
        assert recorded.eval.get_type("end_ckpt") is int and recorded.eval.end_ckpt is None
        defaults.unresolve(recorded)
        assert recorded.sampling.steps == before.get("sampling.steps")
        resolve(recorded)
        assert recorded == config
        defaults.unresolve(recorded)
        recorded.update_from_flattened_dict(changes)
        resolve(recorded)
        config, _ = load_config(name)
        config.update_from_flattened_dict({**before, **changes})
        resolve(config)
        assert recorded == config


@pytest.mark.parametrize("content", ['{"seed": "x"}', "{", "[]"])
def test_a_recorded_config_that_cannot_be_read(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json") as error:
        recorded_config(tmp_path)
    assert "\n" not in str(error.value)
