"""Configs hold the published values; the command line sets fields and names every mistake."""

import errno
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import jax
import pytest
from helpers.places import ROOT

import scoremle
from scoremle.cli import main as cli
from scoremle.cli.commands import COMMANDS, help, parser_of
from scoremle.cli.flags import MEANINGS
from scoremle.errors import Stopped, UserError
from scoremle.experiment import defaults
from scoremle.experiment.build import build
from scoremle.experiment.config import fields_of
from scoremle.experiment.configs import NAMED_CONFIGS

CONFIGS = sorted(f"configs/{name}.py" for name in NAMED_CONFIGS if name.endswith("_continuous"))
OWN = ["configs/digits.py", "configs/fashion_mnist.py", "configs/own_images.py"]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parse(path: str, *more: str) -> Namespace:
    return parser_of("").checked([f"--config={path}", "--workdir=w", "--mode=train", *more])


def failure(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        parser_of("").checked(list(argv))
    assert "\n" not in str(error.value)
    return str(error.value)


def field_failure(flag: str) -> str:
    return failure("--config=configs/digits.py", "--workdir=w", "--mode=train", flag)


# Values


def test_there_are_eight_published_configs():
    names = [
        f"{d}_ddpmpp{v}_continuous.py" for d in ("cifar10", "imagenet32") for v in ("", "_deep")
    ]
    assert sorted(f"configs/{sde}/{n}" for sde in ("vp", "subvp") for n in names) == CONFIGS


@pytest.mark.parametrize("path", CONFIGS)
def test_published_values(path):
    config = parse(path).config
    deep, imagenet, subvp = "_deep_" in path, "imagenet32" in path, "subvp" in path
    facts = {
        "training.sde": "subvpsde" if subvp else "vpsde",
        "training.smallest_time": 1e-2 if subvp else 1e-5,
        "training.n_iters": 950_001 if deep else 1_300_001,
        "training.batch_size": 128,
        "training.snapshot_freq": 50_000,
        "training.snapshot_freq_for_preemption": 10_000,
        "training.n_jitted_steps": 5,
        "training.reduce_mean": True,
        "training.continuous": True,
        "training.likelihood_weighting": False,
        "training.importance_weighting": False,
        "training.stratified": False,
        "sampling.method": "ode",
        "sampling.steps": 32,
        "sampling.n_steps_each": 1,
        "sampling.noise_removal": True,
        "sampling.probability_flow": False,
        "sampling.snr": 0.16,
        "sampling.smallest_time": 1e-2 if subvp else 1e-3,
        "eval.batch_size": 1024,
        "eval.num_repeats": 1 if imagenet else 5,
        "eval.dataset": "test",
        "deq.n_iters": 300_001,
        "deq.ema_rate": 0.99,
        "data.dataset": "ImageNet" if imagenet else "CIFAR10",
        "data.random_flip": not imagenet,
        "data.centered": True,
        "data.uniform_dequantization": False,
        "model.name": "ncsnpp",
        "model.nf": 128,
        "model.ch_mult": (1, 2, 2, 2),
        "model.num_res_blocks": 8 if deep else 4,
        "model.attn_resolutions": (16,),
        "model.dropout": 0.0 if imagenet else 0.1,
        "model.embedding_type": "positional",
        "model.fir": False,
        "model.resblock_type": "biggan",
        "model.scale_by_sigma": False,
        "model.ema_rate": 0.9999,
        "model.init_scale": 0.0,
        "optim.lr": 2e-4,
        "optim.warmup": 5000,
        "optim.grad_clip": 1.0,
        "seed": 42,
    }
    values = {name: value for name, (_, value) in fields_of(config).items()}
    assert {name: values[name] for name in facts} == facts


def test_values_that_no_published_config_changes():
    """Beside those above: what an experiment is whose config says nothing of it."""
    values = {name: value for name, (_, value) in fields_of(defaults.get_config()).items()}
    facts = {
        "training.accumulate": 1, "training.log_freq": 100, "training.eval_freq": 100,
        "training.on_nan": "stop", "training.rollbacks": 3, "training.snapshot_sampling": True,
        "training.time_density": "published", "training.second_order": False,
        "devices.fsdp": False, "logging": "",
        "deq.offset": True, "deq.filters": 96, "deq.components": 32, "deq.blocks": 2,
        "deq.couplings": 4, "deq.heads": 4, "deq.variant": "cifar10", "deq.dropout": 0.0,
        "sampling.predictor": "euler_maruyama", "sampling.corrector": "none",
        "eval.wait": False, "eval.enable_sampling": False, "eval.num_samples": 50_000,
        "eval.inception": "", "eval.stats": "", "eval.enable_loss": False,
        "eval.enable_bpd": True, "eval.bpd_dataset": "test", "eval.dtype": "float32",
        "eval.num_images": 0, "eval.bound": False, "eval.dsm": True, "eval.bound_draws": 1000,
        "eval.bound_times": "learned", "eval.bound_stratified": True, "eval.bound_steps": 0,
        "eval.dequantization": "uniform", "eval.dequantizer": False,
        "eval.importance_samples": 1, "eval.label": "", "eval.suite": False,
        "eval.offset": True, "eval.divergence": "rademacher", "eval.probes": 1,
        "eval.solver": "auto", "eval.nodes": 32,
        "data.path": "", "data.image_size": 32, "data.num_channels": 3, "data.fit": "",
        "data.levels": 0, "data.on_device": "auto", "data.augment": False,
        "data.bin_middles": False,
        "model.resamp_with_conv": True, "model.conditional": True, "model.fir": False,
        "model.fir_kernel": (1, 3, 3, 1), "model.skip_rescale": True,
        "model.progressive": "none", "model.progressive_input": "none",
        "model.progressive_combine": "sum", "model.parameterization": "published",
        "model.embedding": "time", "model.fourier_features": False,
        "model.fourier_scale": 16.0, "model.trainable_embedding": False,
        "model.nonlinearity": "swish", "model.dtype": "float32", "model.remat": False,
        "model.sigma_min": 0.01, "model.sigma_max": 50.0, "model.beta_min": 0.1,
        "model.beta_max": 20.0, "model.schedule": "fixed", "model.latent_size": 50,
        "model.latent_k": 15, "model.encoder_blocks": 4, "model.log_snr_min": -5.0,
        "model.log_snr_max": 13.3, "model.num_scales": 1000,
        "optim.optimizer": "Adam", "optim.beta1": 0.9, "optim.beta2": 0.999,
        "optim.eps": 1e-8, "optim.weight_decay": 0.0,
    }  # fmt: skip
    assert {name: values[name] for name in facts} == facts
    resolved = parse("vp/cifar10_ddpmpp_continuous").config
    assert resolved.eval.tolerance == 5e-4
    for solver in ("doubling", "adaptive"):
        line = "vp/cifar10_ddpmpp_continuous", f"--config.eval.solver={solver}"
        assert parse(*line).config.eval.tolerance == 1e-3


def test_defaults_are_those_that_the_documents_state():
    values = {name: value for name, (_, value) in fields_of(defaults.get_config()).items()}
    text = (ROOT / "docs" / "howto" / "bound.md").read_text()
    stated = dict(re.findall(r"^\| `([\w.]+)` \| (\w+) \|", text, re.MULTILINE))
    assert len(stated) == 6
    assert {name: str(values[name]) for name in stated} == stated


@pytest.mark.parametrize("path", OWN)
def test_own_configs_train_by_maximum_likelihood_on_dequantized_data(path):
    config = parse(path).config
    training, data = config.training, config.data
    assert training.likelihood_weighting and training.stratified
    assert training.importance_weighting == (training.time_density == "published")
    assert data.uniform_dequantization and data.centered and not data.random_flip


def test_every_field_has_a_type_and_a_meaning():
    fields = fields_of(defaults.get_config())
    assert MEANINGS.keys() == fields.keys()
    assert all(kind in (bool, int, float, str, tuple) for kind, _ in fields.values())


def test_a_field_that_the_network_does_not_read_is_refused():
    unread = "--config.model.fir"
    assert parse(OWN[0], unread).config.model.fir
    with pytest.raises(UserError, match=r"model\.fir is not"):
        parse(OWN[0], unread, "--config.model.name=VDM")


# Fields that depend on others


@pytest.mark.parametrize("path", [path for path in CONFIGS if "/vp/imagenet32" in path])
def test_imagenet_starts_later_with_both_weightings_of_the_flags(path):
    both = (
        "--config.training.likelihood_weighting",
        "--config.training.importance_weighting=true",
    )
    assert parse(path, *both).config.training.smallest_time == 5e-5
    assert parse(path, both[0]).config.training.smallest_time == 1e-5
    stated = parse(path, *both, "--config.training.smallest_time=1e-4")
    assert stated.config.training.smallest_time == 1e-4


def test_smallest_times_follow_the_sde_of_the_flags():
    config = parse("configs/digits.py", "--config.training.sde=subvpsde").config
    assert (config.training.smallest_time, config.sampling.smallest_time) == (1e-2, 1e-2)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("--config.sampling.method=pc", 1000),
        ("--config.sampling.method=Euler --config.model.num_scales=7", 7),
        ("--config.sampling.method=ode --config.eval.nodes=9", 9),
        ("--config.sampling.method=ddim", 100),
        ("--config.sampling.method=dpm_solver --config.model.num_scales=7", 20),
        ("--config.sampling.method=pc --config.sampling.steps=50", 50),
    ],
)
def test_the_steps_of_sampling_follow_the_method(flags, steps):
    assert parse("configs/fashion_mnist.py", *flags.split()).config.sampling.steps == steps


def test_the_checkpoints_to_evaluate_stay_unset_until_the_workdir_is_seen():
    config = parse("configs/digits.py", "--config.eval.end_ckpt=3").config
    assert (config.eval.begin_ckpt, config.eval.end_ckpt, config.eval.ckpt_id) == (None, 3, None)


def test_names_may_be_written_in_upper_case_as_published():
    flags = ("--config.training.sde=SubVPSDE", "--config.eval.bpd_dataset=Train")
    config = parse("configs/digits.py", *flags).config
    assert (config.training.smallest_time, config.eval.dataset) == (1e-2, "train")


def test_a_name_in_upper_case_means_the_same_network():
    values = (
        "model.embedding=LOG_SNR", "model.embedding_type=Fourier", "data.on_device=FALSE",
        "model.nf=4", "model.ch_mult=(1,1)",
    )  # fmt: skip
    flags = [f"--config.{value}" for value in values]
    experiment = build(parse("configs/digits.py", *flags).config, levels=17)
    assert experiment.model.time_input == "log_snr"
    assert experiment.training.config.data.on_device == "false"
    assert experiment.config["model"]["embedding"] == "log_snr"
    assert experiment.model.network.embedding_type == "fourier"


@pytest.mark.parametrize("flag", ["eval.dataset", "eval.bpd_dataset"])
def test_both_names_of_the_split(flag):
    config = parse("configs/digits.py", f"--config.{flag}=train").config
    assert config.eval.dataset == config.eval.bpd_dataset == "train"


# Flags


def test_flags_of_every_type():
    line = """
        --config.model.nf=16 --config configs/digits.py --config.model.ch_mult=(1,4)
        --config.optim.lr 1e-3 --noconfig.training.likelihood_weighting --mode eval
        --config.data.path=/a=b --workdir=runs/x --eval_folder=out
        --config.model.attn_resolutions=(4,)
    """
    settings = parser_of("").checked(line.split())
    config = settings.config
    assert (settings.workdir, settings.mode, settings.eval_folder) == ("runs/x", "eval", "out")
    assert (config.model.nf, config.model.ch_mult) == (16, (1, 4))
    assert config.model.attn_resolutions == (4,)
    assert config.optim.lr == 1e-3
    assert config.training.likelihood_weighting is False
    assert config.data.path == "/a=b"
    assert parse("configs/digits.py").eval_folder == "eval"


@pytest.mark.parametrize(
    "again", [["--config.model.ch_mult=(1,3)"], ["--config.model.ch_mult", "1,3"]]
)
def test_the_last_of_repeated_flags_counts(again):
    first = ("--config.model.ch_mult", "(2,2)", "--config.model.nf=4", "--config.model.nf=8")
    config = parse("configs/digits.py", *first, *again, "--config.seed=1").config
    assert (config.model.ch_mult, config.model.nf, config.seed) == ((1, 3), 8, 1)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.training.likelihod_weighting=True", "mean training.likelihood_weighting?"),
        ("--noconfig.training.likelihod=1", "training.likelihod; did"),
        ("--config.zzz=1", "unknown field zzz"),
        ("--config.training=1", "group of fields"),
        ("--config.training.batch_size=abc", 'int, got "abc"'),
        ("--config.training.batch_size=1.5", 'int, got "1.5"'),
        ("--config.optim.lr=fast", 'float, got "fast"'),
        ("--config.training.smallest_time=x", 'float, got "x"'),
        ("--config.eval.bound=maybe", 'bool, got "maybe"'),
        ("--config.model.ch_mult=a,b", 'model.ch_mult must'),
        ("--config.model.ch_mult=1,,2", "model.ch_mult must"),
        ("--config.model.ch_mult=(1,2.5)", "tuple of int"),
        ("--config.model.ch_mult", "--config.model.ch_mult: expected"),
        ("--config.eval.nodes", "--config.eval.nodes: expected"),
        ("--training.n_iters=1", "mean --config.training.n_iters?"),
        ("--probes=1", "mean --config.eval.probes?"),
        ("--wrkdir=x", "mean --workdir?"),
        ("--mode=fly", "invalid choice: 'fly'"),
        ("digits", "unexpected argument 'digits'"),
    ],
)
def test_mistakes_in_flags(flag, message):
    assert message in field_failure(flag)


def test_missing_flags():
    example = ", such as in: scoremle --config=digits --workdir=runs/digits --mode=train"
    assert failure("--mode=train") == f"missing --config{example}"
    assert failure("--workdir=w") == (
        "w has no config.json, which a training and scoremle import write: name the config, such"
        " as --config=digits"
    )
    assert failure("--config=configs/digits.py", "--mode=train") == f"missing --workdir{example}"
    assert failure("--config=configs/digits.py", "--workdir=w") == f"missing --mode{example}"


BROKEN = {
    "def get_config():\n    return (1,\n": "line 2: SyntaxError",
    "x = 1\ny = x / 0\n": "line 2: ZeroDivisionError",
    "import nowhere\n": "line 1: ModuleNotFoundError",
    "from scoremle.experiment import defaults\ndef get_config():\n    c = defaults.get_config()\n"
    "    c.a.b = 1\n    return c": "line 4, in",
    "x = 1\n": "no function get_config",
    "def get_config():\n    return {}\n": "a ConfigDict",
    "\nraise SystemExit('no data')\n": "line 2: SystemExit",
    "import ml_collections\nget_config = ml_collections.ConfigDict\n": "lacks the field",
    "from scoremle.experiment.defaults import get_config\nresolve = 3\n": "must be a function",
}


@pytest.mark.parametrize("source", BROKEN)
def test_broken_config_file(source, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(source)
    message = failure(f"--config={file}", "--workdir=w", "--mode=train")
    assert BROKEN[source] in message
    assert str(file) in message


def test_a_misspelt_field_of_a_config_file(tmp_path):
    """Refused as on the command line: it would be written to config.json and read by nothing."""
    file = tmp_path / "mine.py"
    start = "from scoremle.experiment.defaults import get_config as base\ndef get_config():\n"
    for line, words in [
        ("c.training.niters = 5", "mean training.n_iters?"),
        ("c.sed = 5", "mean seed?"),
        ("c.mine = {'own': 1}", "unknown field mine.own"),
        ("c.trainig = 5", "mean training?"),
        ("c.trainig.n_iters = 5", "no field trainig; did you mean training?"),
        ("c.training.n_iters = '5'", "not str '5'"),
        ("c.model.ch_mult = 2", "not int '2'"),
        ("c.eval = True", "eval must be ConfigDict, not bool 'True'"),
    ]:
        file.write_text(f"{start}  c = base()\n  {line}\n  return c\n")
        failed = failure(f"--config={file}", "--workdir=w", "--mode=train")
        where = re.escape(str(file))
        assert re.match(rf"config file {where}: |{where}, line 4, in get_config: ", failed)
        assert failed.endswith(words)


def test_missing_config_file(tmp_path):
    file = tmp_path / "absent.py"
    assert failure(f"--config={file}") == f"no file {file} (looked for {file})"


def test_a_config_file_anywhere_can_use_the_default(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from scoremle.experiment.defaults import get_config\n")
    assert parse(str(file)).config.training.smallest_time == 1e-5


def test_a_folder_that_cannot_be_read_is_not_one_without_a_config(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "lstat", refused)
    (tmp_path / "w").mkdir()
    words = "w can't be read: Permission denied"
    assert failure(f"--workdir={tmp_path / 'w'}", "--mode=eval").endswith(words)
    assert failure(f"--config={tmp_path / 'w'}", "--mode=train").endswith(words)


# The program


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "main.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = run("--config=nowhere.py", "--workdir=w", "--mode=train", cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"scoremle: error: no file nowhere\.py .*\n", result.stderr)
    assert result.stdout == ""


def test_help_lists_every_field(capsys):
    for line in (["--help", "--config=configs/digits.py"], ["help", "config", "digits"]):
        assert cli.main(line) == 0
        table = capsys.readouterr().out
        for name, (kind, _) in fields_of(defaults.get_config()).items():
            row = rf"^{re.escape(name)} +{kind.__name__} +\S.* \S"
            assert re.search(row, table, re.MULTILINE)
        row = r"^data\.dataset +str +'digits' +name of the data set$"
        assert re.search(row, table, re.MULTILINE)


def ended(monkeypatch, error) -> int:
    """The exit code of a run in which this error is raised."""

    def failing(_):
        raise error

    monkeypatch.setattr(cli, "_run", failing)
    return cli.main(["--workdir=w"])


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Stopped(signal.SIGTERM), 143, None),
        (Stopped(signal.SIGINT), 130, None),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("it goes on"), 130, "interrupted; it goes on"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (OSError("truncated"), 2, "error: truncated"),
        (MemoryError(), 2, f"error: out of memory; {cli.LESS_MEMORY}"),
        (MemoryError("9 GiB"), 2, f"error: out of memory: 9 GiB; {cli.LESS_MEMORY}"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 bytes.\n"), 2,
            f"error: out of memory: RESOURCE_EXHAUSTED: 9 bytes.; {cli.LESS_MEMORY}",
        ),
    ],
)  # fmt: skip
def test_other_ways_to_end(error, code, words, monkeypatch, capsys):
    assert ended(monkeypatch, error) == code
    assert capsys.readouterr().err == (f"scoremle: {words}\n" if words else "")


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    with pytest.raises(RuntimeError, match="bug"):
        ended(monkeypatch, RuntimeError("bug"))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("trian", "did you mean train?"),
        ("train_deq", "did you mean train-deq?"),
        ("x", f"there are: {', '.join(COMMANDS)}"),
    ],
)
def test_words_that_are_no_command(word, hint, capsys):
    assert cli.main([word]) == 2
    assert capsys.readouterr().err == f"scoremle: error: unknown command {word!r}; {hint}\n"


@pytest.mark.parametrize("command", ["eval", "train-deq"])
def test_a_name_of_a_config_that_is_no_folder_has_the_command_that_makes_one(
    command, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    for word, hint in (("digits", "; first: scoremle train digits runs/digits"), ("digit", "")):
        assert cli.main([command, word]) == 2
        assert capsys.readouterr().err.endswith(f"there is no folder {word}{hint}\n")


def test_usage_and_version(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err == help.screen() + "\n"
    command = [sys.executable, "-m", "scoremle", "--version"]
    ours, libraries, device = subprocess.check_output(command, text=True).splitlines()
    assert ours == f"scoremle {scoremle.__version__}" and f"jax {jax.__version__}," in libraries
    assert device.startswith("device 0: cpu")
