"""The configs of VDM, i-DODE and MuLAN: what they build, and that tiny ones are trained."""

import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.marks import some
from helpers.places import GOLDEN, ROOT
from helpers.tiny_runs import as_it_was

import scoremle
from scoremle.cli import main as cli
from scoremle.core.augment import augmented
from scoremle.errors import UserError
from scoremle.experiment import networks
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.record import augmentation
from scoremle.experiment.rules import check_config
from scoremle.experiment.workdir import Workdir

NAMES = sorted(name for name in NAMED_CONFIGS if name.startswith(("vdm/", "idode/", "mulan/")))
TINY = (
    "data.dataset=digits", "data.image_size=8", "data.num_channels=1", "model.nf=32",
    "model.num_res_blocks=1", "training.batch_size=4", "training.snapshot_sampling=False",
    "training.n_jitted_steps=1", "eval.num_images=3", "eval.num_repeats=1", "eval.batch_size=3",
    "eval.bound_draws=4", "eval.solver=multistep", "eval.nodes=4",
)  # fmt: skip


# The release of MuLAN has 15 bits on, and its config for ImageNet does not say so.
CODE = {"latent_size": 50, "latent_k": 15, "forward_n_layer": 4}


def count(n, blocks, attention):
    """Parameters of the network, by its description, with 15 channels seen and one of c."""
    def block(seen):
        shortcut = seen * n + n if seen != n else 0
        return 2 * seen + 9 * seen * n + n + 4 * n * n + 2 * n + 9 * n * n + n + shortcut

    attentions = 1 + (2 * blocks + 1) * attention
    ends = 9 * 15 * n + n + 2 * n + 9 * n * 3 + 3
    condition = (n + 1) * 4 * n + 4 * n + 16 * n * n + 4 * n
    return (
        ends + condition + (blocks + 2) * block(n) + (blocks + 1) * block(2 * n)
        + attentions * (2 * n + 4 * (n * n + n))
    )  # fmt: skip


@some("name", NAMES, quick=["vdm/cifar10"])
def test_configs_build_the_published_network(name):
    config = published_config(name, {})
    experiment = build(config, levels=256)
    params = experiment.training.template.params
    model, wide = config.model, "cifar10" not in name or "aug" in name
    assert (model.nf, model.num_res_blocks) == (256 if wide else 128, 64 if "64" in name else 32)
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    known = {"vdm/cifar10": 30_578_181, "idode/cifar10": 30_578_179,
             "mulan/cifar10-conditioned": 71_153_846}  # fmt: skip
    assert found == known.get(name, found)
    if "mulan" not in name:
        schedule = {"fixed": 0, "scalar": 2, "network": 2 + 3 * 1024}[model.schedule]
        attends = bool(model.attn_resolutions)
        assert found == schedule + count(model.nf, model.num_res_blocks, attends)
    elif model.nf == 128:
        shapes = json.loads((GOLDEN / "vdm_shapes.json").read_text())
        shapes |= json.loads((GOLDEN / "mulan_shapes.json").read_text())
        made = {name: list(leaf.shape) for name, leaf in flatten_dict(params, sep="/").items()}
        of_vdm = "gamma/b", "gamma/w"
        assert made == {name: shapes[name] for name in shapes if name not in of_vdm}
    low, high = (float(experiment.model.sde.log_snr(t)) for t in (1.0, 0.0))
    assert (low, high) == (pytest.approx(-5.0), pytest.approx(13.3))
    assert experiment.model.eps == 0
    assert experiment.model.pixels.points[0] == -1 + 1 / 256


@pytest.mark.parametrize("name", NAMES)
def test_configs_have_the_published_settings(name):
    settings = json.loads((GOLDEN / "successor_settings.json").read_text())[name]
    of_model, of_training = settings["model"], settings["training"]
    of_adam, config = settings["optimizer"]["args"], published_config(name, {})
    model, optim, training, idode = config.model, config.optim, config.training, "idode" in name
    encoder = networks._encoder(model)
    pairs = {
        "seed": (config.seed, of_training["seed"]),
        "batch": (training.batch_size, of_training["batch_size_train"]),
        "steps": (training.n_iters, of_training["num_steps_train"]),
        "warm-up": (optim.warmup, of_training["num_steps_lr_warmup"]),
        "evaluation": (config.eval.batch_size, of_training["batch_size_eval"]),
        "rate": (optim.lr, settings["optimizer"]["learning_rate"]),
        "average": (model.ema_rate, settings["optimizer"]["ema_rate"]),
        "Adam": ((optim.beta1, optim.beta2, optim.eps, optim.weight_decay),
                 tuple(of_adam[key] for key in ("b1", "b2", "eps", "weight_decay"))),
        "optimizer": (optim.optimizer.lower(), settings["optimizer"]["name"]),
        "no clipping": (optim.grad_clip < 0, True),
        "channels": (model.nf, of_model["sm_n_embd"]),
        "blocks": (model.num_res_blocks, of_model["sm_n_layer"]),
        "dropout": (model.dropout, of_model["sm_pdrop"]),
        "attention": (bool(model.attn_resolutions), of_model["with_attention"]),
        "features": (model.fourier_features, of_model["with_fourier_features"]),
        "ends": ((-model.log_snr_max, -model.log_snr_min),
                 (of_model["gamma_min"], of_model["gamma_max"])),
        "schedule": (model.schedule, {
            "fixed": "fixed", "learnable_scalar": "scalar", "learnable_nnet": "network",
            "poly_fixedend": "polynomial",
        }[of_model["gamma_type"]]),
        "strata": (training.stratified, of_model["antithetic_time_sampling"]),
        "augmented": (config.data.augment, settings["data"]["dataset"].endswith("_aug")),
        "velocity": (model.parameterization == "v", of_model.get("velocity", False)
                     or settings.get("vdm_type") == "mulan_velocity"),
        "code": ((encoder.logits, model.latent_k, encoder.num_res_blocks),
                 tuple(of_model.get(key, known) for key, known in CODE.items())),
        "importance": (training.time_density == "alpha_squared", idode and of_model["importance"]),
        "draws": (config.eval.importance_samples, of_model.get("num_importance", 1)),
    }  # fmt: skip
    for what, (found, published) in pairs.items():
        assert found == published, what


@pytest.mark.parametrize(("fields", "words"), [
    ({"data.bin_middles": False}, "bound on integers"),
    ({"training.likelihood_weighting": False}, "set training.likelihood_weighting"),
    ({"data.uniform_dequantization": True}, "two ways"),
    ({"training.sde": "vpsde"}, "is linear"),
    ({"model.name": "ncsnpp", "data.augment": True}, "only model.name=vdm"),
    ({"training.importance_weighting": True, "training.time_density": "learned"}, "in its own"),
    ({"model.schedule": "cubic"}, "model.schedule must"),
    ({"model.schedule": "least_variance", "training.time_density": "learned"}, "draws t evenly"),
    ({"model.schedule": "polynomial", "data.augment": True}, "without data.augment"),
    ({"model.latent_k": 51}, "latent_k=51"),
    ({"model.schedule": "polynomial", "training.smallest_time": 1e-3}, "smallest_time=0"),
    ({"training.second_order": True}, "that is fixed"),
])  # fmt: skip
def test_fields_that_do_not_go_together(fields, words):
    with pytest.raises(UserError, match=words):
        check_config(published_config("vdm/cifar10", fields))


def train(name, folder, steps, *fields):
    flags = [f"--config.{field}" for field in (*TINY, f"training.n_iters={steps}", *fields)]
    assert cli.main([f"--config={name}", f"--workdir={folder}", "--mode=train", *flags]) == 0


def state_of(folder):
    place = Workdir(folder)
    return place.restore(build(place.config()).training.template).tree


def trained(name, place, *fields):
    """Six steps, and the last three of them again: the same to the last bit."""
    fields = (*fields, "training.snapshot_freq_for_preemption=3")
    train(name, place / "whole", 6, *fields)
    as_it_was(place / "whole", 3, place / "parts")
    train(name, place / "parts", 6, *fields)
    states = [state_of(place / folder) for folder in ("whole", "parts")]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    return states[0]


def measured(folder, *flags):
    assert cli.main(["eval", str(folder), *flags]) == 0
    (results,) = folder.rglob("results.json")
    (facts,) = json.loads(results.read_text()).values()
    assert np.isfinite(facts["mean"]) and facts["images"] == 3
    return facts


@pytest.mark.long
def test_a_tiny_one_trains_and_goes_on_to_the_last_bit(tmp_path):
    """i-DODE is measured as its config says."""
    trained("idode/cifar10_aug", tmp_path)
    facts = measured(tmp_path / "whole", "--config.eval.importance_samples=2")
    assert facts["dequantizer"] == "truncated_normal" and facts["importance_samples"] == 2


@pytest.mark.long
def test_a_tiny_one_with_codes_trains_is_measured_and_sampled(tmp_path, capsys):
    """MuLAN is measured by the bound and by the ODE, each with the cost of a code."""
    fields = ("model.latent_size=6", "model.latent_k=2", "model.encoder_blocks=1",
              "optim.lr=1e-2", "eval.num_samples=3")  # fmt: skip
    state = trained("mulan/cifar10-conditioned", tmp_path, *fields)
    folder = tmp_path / "whole"
    begun = build(Workdir(folder).config()).training.init_state()
    for name in ("score_model", "gamma", "encoder_model"):
        pair = (each.params[name] for each in (begun, state))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *pair)
        assert max(jax.tree.leaves(moved)) > 1e-4, name
    assert cli.main(["train-deq", str(folder)]) == 2
    assert "nothing to learn" in capsys.readouterr().err
    assert not (folder / "flowpp_dequantizer").exists()
    cost = np.log(15) / (64 * np.log(2))
    facts = measured(folder)
    assert facts["reconstruction"] == "Discrete"
    assert facts["sde"]["schedule"]["type"] == "CodedPolynomial"
    assert facts["mean_code"] == pytest.approx(cost)
    t, fixed, learned, least, most = (
        np.asarray(facts["log_snr"][name]) for name in ("t", "fixed", "learned", "least", "most")
    )
    np.testing.assert_allclose(fixed, 13.3 - 18.3 * t, atol=1e-4)
    for each in (learned, least, most):
        np.testing.assert_allclose(each[[0, -1]], [13.3, -5], atol=1e-4)
    assert (least < learned).all(where=(t > 0) & (t < 1)) and (most - learned)[1:-1].min() > 1e-3
    flags = ("--config.eval.bound=False", "--config.eval.dequantization=truncated_normal",
             "--config.eval.enable_sampling=True", "--config.eval.enable_loss=True",
             "--eval-folder=other")  # fmt: skip
    assert cli.main(["eval", str(folder), *flags]) == 0
    found = json.loads((folder / "other" / "results.json").read_text())
    assert {each["kind"] for each in found.values()} == {
        "exact_truncated_normal_code_bound", "loss"
    }  # fmt: skip
    assert all(each["mean_code"] == pytest.approx(cost) for each in found.values())
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report" / "index.html").read_text()
    assert "Those of the numbers of images are at most" in page
    capsys.readouterr()
    for words, keyword in (
        (["eval", str(folder), "--config.eval.bound_steps=2"], "one log-SNR"),
        (["eval", str(folder), "--config.eval.bound",
          "--config.eval.dequantization=truncated_normal"], "dequantization=none"),
        (["sample", str(folder), "-n", "2", "--log-prob", "-o", "x.npz"], "a code"),
    ):
        assert cli.main(words) == 2
        assert keyword in capsys.readouterr().err


def is_at(step, process, folder):
    """Waits until the training has written this step, or has ended."""
    numbers = folder / "metrics.jsonl"
    while process.poll() is None:
        if numbers.exists() and f'"step": {step},' in numbers.read_text():
            return True
        time.sleep(0.5)
    return False


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["vdm/cifar10", "idode/cifar10", "mulan/cifar10-conditioned"])
def test_one_of_the_published_size_goes_on_after_a_kill(name, tmp_path):
    """Trains on files in the layout of CIFAR-10, two images a step."""
    (files := tmp_path / "files").mkdir()
    draws = np.random.default_rng(0)
    for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = draws.integers(0, 256, (10_000, 3073), np.uint8)
        records[:, 0] %= 10
        (files / f"{part}.bin").write_bytes(records.tobytes())
    fields = {
        "data.path": files, "training.batch_size": 2, "training.n_iters": 3,
        "training.snapshot_freq_for_preemption": 1, "training.log_freq": 1,
        "training.n_jitted_steps": 1, "training.snapshot_sampling": False,
    }  # fmt: skip
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "scoremle", "train", name, str(folder), *flags]
    with subprocess.Popen(command, cwd=ROOT) as process:
        assert is_at(2, process, folder)
        process.kill()
    subprocess.run(command, cwd=ROOT, check=True)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert np.isfinite([row["loss"] for row in steps]).all()


@pytest.mark.long
def test_a_learned_schedule_passes_every_command(tmp_path, capsys):
    """VDM learns the course by the variance, and the ends by the bound."""
    fields = "model.schedule=least_variance", "optim.lr=1e-2", "model.ema_rate=0.5"
    state = trained("vdm/cifar10_aug", tmp_path, *fields)
    begun = build(Workdir(tmp_path / "whole").config()).training.init_state()
    for name in ("ends", "l2", "l3"):
        pair = (each.params["gamma"][name] for each in (begun, state))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *pair)
        assert max(jax.tree.leaves(moved)) > 1e-4, name
    facts = measured(tmp_path / "whole")
    assert facts["reconstruction"] == "Discrete"
    assert facts["sde"]["schedule"]["type"] == "BetweenEnds"
    gap = np.subtract(facts["log_snr"]["learned"], facts["log_snr"]["fixed"])
    assert 1e-4 < np.abs(gap).max() < 1
    whole, copy = str(tmp_path / "whole"), str(tmp_path / "copy")
    shutil.copytree(whole, copy)
    capsys.readouterr()
    assert cli.main(["compare", whole, copy, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert found["difference"] == found["stderr"] == 0
    assert cli.main(["report", whole]) == 0
    page = (tmp_path / "whole" / "report" / "index.html").read_text()
    assert "The learned log-SNR falls from" in page
    np.save(tmp_path / "x.npy", np.full((3, 8, 8, 1), 7, np.uint8))
    out = f"--out={tmp_path / 'x.csv'}"
    assert cli.main(["score", whole, str(tmp_path / "x.npy"), "--repeats=1", out]) == 0
    drawn = ("-n", "2", "-o", str(tmp_path / "y.npy"), "--steps=2")
    assert cli.main(["sample", whole, *drawn]) == 0
    assert np.load(tmp_path / "y.npy").shape == (2, 8, 8, 1)
    assert cli.main(["export", whole, str(tmp_path / "checkpoint_1")]) == 2
    assert "no place" in capsys.readouterr().err
    assert cli.main(["export", whole, str(tmp_path / "x.safetensors")]) == 0
    models = map(scoremle.load, (whole, tmp_path / "x.safetensors"))
    for a, b in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits", "none"), ("vp/cifar10_ddpmpp_continuous", "horizontal flip"),
        ("idode/cifar10_aug", "flips and turns that the network sees"),
    ],
)  # fmt: skip
def test_augmentation_in_words(name, words):
    assert augmentation(published_config(name, {}).data.to_dict()) == words


def test_augmentation_is_an_input():
    """A quarter are as they were; mirrored and turned ones are told from them by c."""
    images = jnp.arange(2 * 9).reshape(1, 3, 3, 2) * jnp.ones((4000, 1, 1, 1), int)
    found, c = map(np.asarray, augmented(images, jax.random.key(0)))
    ways = [np.rot90(side, k) for side in (images[0], images[0][:, ::-1]) for k in range(4)]
    kinds = np.array([[(image == way).all() for way in ways] for image in found])
    assert (kinds.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(c, ~kinds[:, 0])
    shares = np.array([1 / 4, *[1 / 12] * 3, 1 / 4, *[1 / 12] * 3])
    np.testing.assert_allclose(kinds.mean(axis=0), shares, atol=4 * np.sqrt(0.25 * 0.75 / 4000))
