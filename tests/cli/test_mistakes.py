"""One clear line for each mistake, and nothing lost."""

import gzip
import json
import math
import re
import shutil
import struct

import pytest
from helpers.tiny_runs import mistake, run

from scoremle.errors import UserError
from scoremle.experiment.config import fields_of, published_config
from scoremle.experiment.rules import check_config
from scoremle.files import write_atomically


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("training__likelihod_weighting", "True", ["did you mean training.likelihood_weighting?"]),
        ("training__batch_size", "many", ["training.batch_size must be int", '"many"']),
        ("training__sde", "vsde", ["unknown SDE", "'vsde'", "vpsde, subvpsde, vesde"]),
        ("data__dataset", "digit", ["unknown data set 'digit'", "did you mean digits?", "mnist"]),
        ("data__dataset", "CIFAR10", ["cifar10 has no default place", "cifar-10-binary.tar.gz"]),
        ("data__path", "/somewhere", ["data.path", "leave it empty"]),
        ("data__image_size", 4, ["data.image_size is 4", "8x8"]),
        ("data__image_size", 0, ["data.image_size must be at least 1, not 0"]),
        ("data__num_channels", 0, ["data.num_channels must be at least 1, not 0"]),
        ("model__embedding", "logsnr", ["model.embedding must be time or log_snr, not 'logsnr'"]),
        ("model__parameterization", "V", ["model.parameterization must be published or eps or"]),
        ("data__num_channels", 3, ["data.num_channels is 3, but digits has 1"]),
        ("data__num_channels", 2, ["data.num_channels must be 1 or 3"]),
        ("model__name", "unet", ["unknown network", "'unet'", "there are: ncsnpp"]),
        ("model__ch_mult", "(1,2,2,2,2)", ["8x8 cannot be halved 4 times", "model.ch_mult"]),
        ("model__ch_mult", "()", ["model.ch_mult must be at least 1"]),
        ("model__ch_mult", 2, ['model.ch_mult must be tuple', '"(1,)" of one element']),
        ("model__attn_resolutions", 1.5, ["model.attn_resolutions must be tuple"]),
        ("model__ch_mult", "(1,0)", ["model.ch_mult must be at least 1"]),
        ("model__nf", 2, ["model.nf must be from 4 to 65536, not 2"]),
        ("model__nf", -8, ["model.nf must be from 4 to 65536, not -8"]),
        ("model__dtype", "float16", ["model.dtype", "float32, bfloat16"]),
        ("eval__dtype", "float16", ["eval.dtype", "float32, bfloat16"]),
        ("logging", "mlflow,wand", ["unknown writer of numbers", "'wand'; did you mean wandb?"]),
        ("model__resblock_type", "resnet", ["model.resblock_type", "ddpm, biggan"]),
        ("model__dropout", 1.0, ["model.dropout must be at least 0 and below 1"]),
        ("model__beta_min", 0, ["model.beta_min"]),
        ("model__sigma_min", 60, ["model.sigma_min must be below model.sigma_max"]),
        ("model__num_scales", 0, ["model.num_scales must be at least 1"]),
        ("model__normalization", "BatchNorm", ["can only be 'GroupNorm'"]),
        ("training__smallest_time", -1, ["training.smallest_time must be at least 0 and below 1"]),
        ("training__smallest_time", 1, ["smallest_time must be at least 0 and below 1, not 1"]),
        ("training__smallest_time", "nan", ["smallest_time must be at least 0 and below 1"]),
        ("sampling__smallest_time", -1e-3, ["sampling.smallest_time must be at least 0"]),
        ("training__likelihood_weighting", False, ["set training.likelihood_weighting too"]),
        ("training__batch_size", 0, ["training.batch_size must be at least 1, not 0"]),
        ("training__n_iters", 0, ["training.n_iters must be at least 1"]),
        ("training__on_nan", "ignore", ["training.on_nan must be stop or rollback, not 'ignore'"]),
        ("training__rollbacks", -1, ["training.rollbacks must be at least 0, not -1"]),
        ("training__log_freq", 0, ["training.log_freq must be at least 1"]),
        ("training__continuous", False, ["training.continuous can only be True"]),
        ("optim__lr", "inf", ["optim.lr must be a finite number above 0"]),
        ("optim__optimizer", "SGD", ["optim.optimizer must be Adam or AdamW, not 'SGD'"]),
        ("seed", -1, ["seed must be at least 0"]),
        ("seed", 2**32, ["seed must be at least 0 and below"]),
        ("seed", 2**64, ["seed must be int of at most 4294967296"]),
        ("sampling__method", "rk45", ["sampling.method 'rk45'", "ode, pc, euler, ddim"]),
        ("sampling__steps", 0, ["sampling.steps must be at least 1"]),
        ("sampling__snr", "nan", ["sampling.snr must be a finite number above 0"]),
        ("sampling__n_steps_each", 0, ["sampling.n_steps_each must be at least 1"]),
        ("eval__solver", "rk45", ["eval.solver 'rk45'", "rk45_reference"]),
        ("eval__divergence", "uniform", ["eval.divergence 'uniform'", "rademacher, gaussian"]),
        ("eval__dataset", "valid", ["eval.dataset must be train or test, not 'valid'"]),
        ("eval__dequantization", "normal", ["must be uniform", "truncated_normal"]),
        ("eval__dequantization", "none", ["is for the bound", "set eval.bound"]),
        ("eval__dequantizer", True, ["no dequantizer in", "train it with scoremle train-deq"]),
        ("eval__importance_samples", 0, ["eval.importance_samples must be at least 1"]),
        ("eval__wait", True, ["eval.wait", "eval.end_ckpt"]),
        ("deq__dropout", 0.1, ["deq.dropout can only be 0.0"]),
        ("deq__couplings", 0, ["deq.couplings must be at least 1"]),
        ("eval__batch_size", -1, ["eval.batch_size must be at least 1, not -1"]),
        ("eval__nodes", 3, ["eval.nodes must be at least 4"]),
        ("eval__probes", 0, ["eval.probes must be at least 1"]),
        ("eval__tolerance", 0.0, ["eval.tolerance must be a finite number above 0"]),
        ("eval__num_repeats", 0, ["eval.num_repeats must be at least 1"]),
        ("eval__bound_draws", 0, ["eval.bound_draws must be at least 1"]),
        ("eval__bound_times", "lerned", ["eval.bound_times", "did you mean learned?", "log_snr"]),
        ("eval__num_images", -1, ["eval.num_images must be at least 0"]),
        ("eval__num_samples", 0, ["eval.num_samples must be at least 1"]),
    ],
)  # fmt: skip
def test_impossible_values(field, value, words, tiny, capfd):
    mode = "eval" if field.startswith("eval__") else "train"
    line = mistake(capfd, mode, tiny.workdir, **{field: value})
    for word in words:
        assert word in line


ONE = "data.image_size data.num_channels training.batch_size training.accumulate"
ONE += " eval.batch_size eval.num_samples eval.num_repeats eval.bound_draws eval.probes"
ONE += " model.num_res_blocks model.num_scales model.latent_size model.latent_k"
ONE += " model.encoder_blocks sampling.steps sampling.n_steps_each eval.importance_samples"
ONE += " deq.n_iters deq.filters deq.components deq.blocks deq.couplings deq.heads"
ZERO = "eval.num_images eval.bound_steps optim.warmup training.rollbacks eval.begin_ckpt"
ZERO += " eval.end_ckpt eval.ckpt_id eval.deq_ckpt"
SHARES = "model.dropout model.ema_rate optim.beta1 optim.beta2 deq.ema_rate"
SHARES += " training.smallest_time sampling.smallest_time"
SIZES = "eval.tolerance optim.lr optim.eps model.beta_min model.beta_max model.sigma_max"
# Values of a field at the ends of its range, and just beyond.
RANGES = {name: ((1, 2), (0, -1)) for name in ONE.split()}
RANGES |= {name: ((0, 1), (-1,)) for name in ZERO.split()}
RANGES |= {name: ((0.0, 0.999), (-1e-9, 1.0, math.nan)) for name in SHARES.split()}
RANGES |= {
    name: ((1e-9, 60.0), (0.0, -1e-9, math.inf, math.nan))
    for name in (*SIZES.split(), "sampling.snr")
}
RANGES["model.sigma_max"] = ((60.0,), (0.0, math.inf, math.nan, 0.01, 1e-3))
RANGES |= {
    "model.ch_mult": (((1,), (1, 2)), ((), (0,), (1, 0))),
    "optim.weight_decay": ((0.0, 1.0), (-1e-9, math.inf)),
    "optim.grad_clip": ((0.5, -1.0), (0.0, math.nan)),
    "model.log_snr_max": ((0.0, 20.0), (math.inf, math.nan)),
    "model.log_snr_min": ((0.0, -20.0), (-math.inf, math.nan)),
    "model.init_scale": ((0.0, 1.0), (math.inf, math.nan)),
    "model.sigma_min": ((1e-9, 49.0), (0.0, 50.0, 51.0)),
    "eval.nodes": ((4, 5), (3,)), "data.levels": ((0, 2, 256), (1, 257, -1)),
    "data.image_size": ((1, 4096), (0, 4097)), "data.num_channels": ((1, 65_536), (0, 65_537)),
    "seed": ((0, 2**32 - 2), (-1, 2**32 - 1)), "training.accumulate": ((1, 2), (0, 3)),
    "model.latent_k": ((1, 50), (0, 51)), "model.latent_size": ((15,), (14, 0)),
    # One value alone, as published.
    "training.continuous": ((True,), (False,)), "model.normalization": (("GroupNorm",), ("x",)),
    "model.attention_type": (("ddpm",), ("x",)), "model.conv_size": ((3,), (4, 2)),
    "model.data_init": ((False,), (True,)), "deq.dropout": ((0.0,), (0.1,)),
    # Words.
    "eval.dataset": (("train", "test"), ("val",)),
    "eval.dequantization": (
        ("uniform", "truncated_normal", "variational", "informed"), ("none", "normal"),
    ),
    "data.fit": (("", "crop", "resize", "pad"), ("stretch",)),
    "data.on_device": (("auto", "true", "false"), ("yes",)),
    "training.on_nan": (("stop", "rollback"), ("go",)),
    "training.time_density": (("published", "alpha_squared", "learned"), ("even",)),
    "optim.optimizer": (("Adam", "AdamW"), ("SGD",)),
    "model.embedding": (("time", "log_snr"), ("sigma",)),
    "model.parameterization": (
        ("published", "eps", "score", "x_0", "v", "u", "unit_u", "-u", "edm"), ("V",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_a_field_may_have_the_ends_of_its_range_and_nothing_beyond(name):
    good, bad = RANGES[name]
    for value in good:
        check_config(published_config(PLAIN, {name: value}))
    for value in bad:
        with pytest.raises(UserError, match=rf"\b{re.escape(name)}\b"):
            check_config(published_config(PLAIN, {name: value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_all_real_fields_are_finite(value):
    kinds = fields_of(published_config(PLAIN, {}))
    names = [name for name, (kind, _) in kinds.items() if kind is float]
    assert len(names) > 15
    for name in names:
        with pytest.raises(UserError, match=rf"\b{re.escape(name)}\b"):
            check_config(published_config(PLAIN, {name: value}))


PLAIN = "vp/cifar10_ddpmpp_continuous"
WEIGHTED = {"training.likelihood_weighting": True}
MIDDLES = {**WEIGHTED, "data.bin_middles": True}
CODED = {**MIDDLES, "model.schedule": "polynomial", "training.sde": "vdm", "model.name": "vdm"}
SCALAR = {**MIDDLES, "model.schedule": "scalar", "training.sde": "vdm"}
LEAST = {**SCALAR, "model.schedule": "least_variance"}
RK45 = {"eval.solver": "rk45_reference"}
# Fields that go together, and one more that does not go with them.
TOGETHER = [
    (WEIGHTED, {"training.importance_weighting": True, "training.time_density": "learned"}),
    (WEIGHTED | {"training.importance_weighting": True},
     {"training.likelihood_weighting": False}),
    (WEIGHTED | {"training.importance_weighting": True}, {"training.time_density": "learned"}),
    (MIDDLES, {"training.likelihood_weighting": False}),
    (MIDDLES, {"data.uniform_dequantization": True}),
    (SCALAR, {"data.bin_middles": False}),
    (SCALAR, {"training.sde": "vpsde"}),
    (SCALAR | {"training.sde": "idode"}, {"training.second_order": True}),
    (SCALAR | {"training.sde": "idode_straight"}, {"model.schedule": "nonsense"}),
    (SCALAR | {"training.time_density": "learned"}, {"model.schedule": "least_variance"}),
    (LEAST, {"training.time_density": "alpha_squared"}),
    (LEAST, {"training.importance_weighting": True}),
    (LEAST, {"training.smallest_time": 1e-3}),
    (LEAST | {"training.sde": "idode"}, {"model.schedule": "polynomial"}),
    (CODED, {"model.name": "ncsnpp"}),
    (CODED, {"training.sde": "idode"}),
    (CODED, {"data.augment": True}),
    (CODED, {"eval.suite": True}),
    (CODED, {"training.importance_weighting": True}),
    ({"model.name": "vdm", "data.augment": True}, {"model.name": "ncsnpp"}),
    ({"training.batch_size": 12, "training.accumulate": 4}, {"training.accumulate": 5}),
    ({"eval.dequantizer": True}, {"eval.dequantization": "informed"}),
    ({"eval.bound": True, "eval.dequantization": "none"}, {"eval.bound": False}),
    ({"eval.bound": True, "eval.dequantization": "informed"}, {"eval.offset": False}),
    ({"eval.dequantization": "truncated_normal"}, {"eval.bound": True}),
    ({"eval.bound_steps": 9}, {"eval.dequantization": "truncated_normal"}),
    ({"eval.bound_steps": 9}, {"eval.dequantization": "variational"}),
    ({"eval.bound_steps": 1}, {"eval.suite": True}),
    ({"eval.importance_samples": 2}, {"eval.bound": True}),
    ({"eval.importance_samples": 2}, {"eval.bound_steps": 1}),
    ({"eval.wait": True, "eval.end_ckpt": 0}, {"eval.end_ckpt": None}),
    *(({"eval.label": "all"}, {f"eval.{name}": True})
      for name in ("suite", "enable_loss", "enable_sampling")),
    (RK45 | {"eval.label": "3"}, {"eval.label": "all"}),
    (RK45, {"eval.probes": 2}), (RK45, {"eval.importance_samples": 2}),
    (RK45, {"eval.suite": True}), (RK45, {"eval.divergence": "orthogonal"}),
    (RK45 | {"eval.divergence": "gaussian"}, {"eval.divergence": "exact"}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "one_more"), TOGETHER)
def test_fields_that_go_together_and_one_that_does_not(fields, one_more):
    check_config(published_config(PLAIN, fields))
    with pytest.raises(UserError, match="|".join(map(re.escape, fields | one_more))):
        check_config(published_config(PLAIN, fields | one_more))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling__predictor": "heun"}, ["sampling.predictor 'heun'", "reverse_diffusion"]),
        ({"sampling__corrector": "ula"}, ["sampling.corrector 'ula'", "langevin, ald, none"]),
        (
            {"sampling__predictor": "ancestral_sampling", "training__sde": "subvpsde"},
            ["ancestral_sampling is defined for scoremle.VP and scoremle.VE", "not for SubVP"],
        ),
        (
            {"sampling__predictor": "ancestral_sampling", "training__sde": "linearvesde"},
            ["ancestral_sampling is defined for scoremle.VP and scoremle.VE", "not for LinearVE"],
        ),
        (
            {"sampling__predictor": "reverse_diffusion", "model__num_scales": 20},
            ["20 steps are too few for beta_max = 20"],
        ),
    ],
)
def test_impossible_predictors_and_correctors(fields, words, tmp_path, capfd):
    line = mistake(capfd, "train", tmp_path / "new", sampling__method="pc", **fields)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("mode", "values", "words"),
    [
        ("eval", {"eval__dequantizer": True, "eval__dequantization": "truncated_normal"},
         "means variational"),
        ("eval", {"eval__bound_steps": 9, "eval__dequantization": "truncated_normal"},
         "bound on integers"),
        ("eval", {"eval__bound_steps": 9, "eval__suite": True}, "unset one"),
        ("eval", {"eval__bound_steps": 1}, "two steps"),
        ("eval", {"eval__bound": True, "eval__importance_samples": 2}, "exact likelihood"),
        ("eval", {"eval__solver": "rk45_reference", "eval__probes": 2}, "eval.probes=2"),
        ("eval", {"eval__solver": "rk45_reference", "eval__divergence": "exact"},
         "eval.divergence=exact"),
        ("eval", {"eval__solver": "rk45_reference", "eval__suite": True}, "eval.suite=True"),
        ("eval", {"eval__divergence": "orthogonal", "eval__probes": 65}, "64 orthogonal probes"),
        ("train_deq", {"deq__variant": "cifar"}, "cifar10, imagenet32"),
        ("train_deq", {"deq__filters": 30, "deq__heads": 4}, "deq.heads=4"),
        ("train_deq", {"eval__ckpt_id": 7}, "no checkpoint 7"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(mode, values, words, tiny, capfd):
    assert words in mistake(capfd, mode, tiny.workdir, **values)


def test_nothing_to_evaluate(tiny, capfd):
    assert "nothing to evaluate" in mistake(capfd, "eval", tiny.workdir, eval__enable_bpd=False)


@pytest.mark.parametrize("mode", ["eval", "train_deq"])
def test_evaluation_before_training(mode, tmp_path, capfd):
    assert "no checkpoint in" in mistake(capfd, mode, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(7, None, "no checkpoint 7"), (None, 9, "no checkpoint 9"), (5, 9, "5 to 9")],
)
def test_a_checkpoint_that_is_not_there(begin, end, words, tiny, capfd):
    asked = {"eval__begin_ckpt": begin, "eval__end_ckpt": end}
    given = {name: number for name, number in asked.items() if number is not None}
    line = mistake(capfd, "eval", tiny.workdir, **given)
    assert words in line and "only 1, 2" in line


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_another_experiment(mode, tiny, capfd):
    line = mistake(capfd, mode, tiny.workdir, model__nf=8)
    assert "model.nf was" in line and "another --workdir" in line


def test_training_under_other_settings_is_another_experiment(tiny, capfd):
    changed = {"optim__lr": 0.5, "training__stratified": False, "seed": 1, "optim__warmup": 3,
               "training__reduce_mean": False}  # fmt: skip
    line = mistake(capfd, "train", tiny.workdir, **changed)
    assert "optim.lr was" in line and "and 1 more; " in line


@pytest.fixture
def damaged(tiny, tmp_path):
    """A copy of the tiny workdir whose newest snapshot has a wrong byte."""
    workdir = tmp_path / "damaged"
    shutil.copytree(tiny.workdir, workdir)
    files = [p for p in (workdir / "checkpoints/checkpoint_2/state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    return workdir


def test_a_damaged_checkpoint_that_was_chosen(damaged, capfd):
    line = mistake(capfd, "eval", damaged, eval__end_ckpt=2)
    assert "checkpoint_2 is damaged" in line


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(damaged, capfd):
    loss = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_images": 30}
    assert run("eval", damaged, **loss) == 0
    assert list(json.loads((damaged / "eval/results.json").read_text())) == ["loss_test_ckpt_1"]
    err = capfd.readouterr().err
    pattern = r"scoremle: warning: \S*checkpoint_2 is damaged [^\n]*trying the one before\n"
    assert re.fullmatch(pattern, err), err


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_places_that_are_files(mode, tiny, tmp_path, capfd):
    file = tmp_path / "file"
    file.write_text("kept")
    for workdir in (file, file / "below"):
        assert f"{file} is a" in mistake(capfd, mode, workdir)
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "be read"), ("[]", "no JSON object")],
)
def test_results_that_cannot_be_read_are_not_overwritten(content, words, damaged, capfd):
    (damaged / "eval").mkdir()
    (damaged / "eval/results.json").write_text(content)
    assert words in mistake(capfd, "eval", damaged, eval__end_ckpt=1)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "eval" / "results.json"
    with pytest.raises(UserError) as error, write_atomically(path):
        raise OSError(28, "No space left on device")
    assert str(error.value) == f"can't write {path}: No space left on device"
    assert list(path.parent.iterdir()) == []


def test_an_eval_folder_that_is_a_file(damaged, capfd):
    file = damaged / "eval"
    file.write_text("kept")
    assert str(file) in mistake(capfd, "eval", damaged, eval__end_ckpt=1)


def idx_flags(path):
    return {"data__dataset": "mnist", "data__image_size": 28, "data__path": path}


def test_missing_data(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("SCOREMLE_DATA", str(tmp_path / "nothing prepared"))
    assert "default place" in mistake(capfd, "train", tmp_path, **idx_flags(""))
    absent = tmp_path / "absent"
    line = mistake(capfd, "train", tmp_path, **idx_flags(absent))
    assert f"file {absent}" in line
    line = mistake(capfd, "train", tmp_path, **idx_flags(tmp_path))
    assert f"train-images-idx3-ubyte.gz in {tmp_path}" in line


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_data(zipped, tmp_path, capfd):
    content = struct.pack(">4I", 0x803, 3, 28, 28) + bytes(3 * 28 * 28)
    content = gzip.compress(content, 0)[:-9] if zipped else content[:-9]
    file = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    file.write_bytes(content)
    line = mistake(capfd, "train", tmp_path, **idx_flags(tmp_path))
    assert f"{file}: truncated" in line
