"""Checkpoints written by PyTorch as score_sde_pytorch does: outputs, averages, the next update."""

import copy

import jax
import numpy as np
import optax
import pytest
from helpers.golden_networks import golden
from helpers.marks import some
from helpers.pytorch_checkpoints import as_pytorch
from helpers.tiny_runs import params_of

import scoremle
from scoremle import published
from scoremle.cli import main as cli
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.published import pytorch
from scoremle.training.checksums import tree_hash
from scoremle.training.step import init_state, make_optimizer

torch = pytest.importorskip("torch")
from helpers.torch_networks import Network  # noqa: E402

NAMES = {"ddpmpp": "vp/cifar10_ddpmpp_continuous", "ncsnpp_ve": "ve/cifar10_ncsnpp_continuous"}
DECAY, LR = 0.9, 0.01


def network(name, enlarged=1):
    """In PyTorch, with the golden parameters, under DataParallel as the original saves it.

    ``enlarged``: for images so many times the golden ones, with attention at the same levels.
    """
    config, params, _ = golden(name)
    size, centered = enlarged * config["data"]["image_size"], config["data"]["centered"]
    sizes = [enlarged * n for n in config["model"]["attn_resolutions"]]
    model = config["model"] | {"attn_resolutions": sizes}
    parallel = torch.nn.DataParallel(Network(model, size=size, centered=centered))
    arrays = {n: torch.from_numpy(array) for n, array in as_pytorch(config, params).items()}
    parallel.load_state_dict({"module.sigmas": parallel.module.sigmas, **arrays})
    return parallel.eval()  # without dropout


def output(module, x, labels):
    with torch.no_grad():
        nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
        return module(nchw, torch.from_numpy(labels)).permute(0, 2, 3, 1).numpy()


def assert_near(a, b, tolerance):
    assert np.abs(a - b).max() < tolerance * np.abs(b).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_network_of_pytorch_gives_the_published_output(name):
    """Of parameters that come from JAX: names, order and layouts are what we take them for."""
    arrays = golden(name)[2]
    assert_near(output(network(name), arrays["x"], arrays["labels"]), arrays["out"], 1e-4)


class Training:
    """Adam, clipping, linear warm-up and the average, as score_sde_pytorch has them."""

    def __init__(self, module):
        self.module, self.step = module, 0
        self.adam = torch.optim.Adam(module.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8)
        self.shadow = [p.detach().clone() for p in self.trained]

    @property
    def trained(self):
        return [p for p in self.module.parameters() if p.requires_grad]

    def update(self, gradients):
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.tensor(gradients[name])  # a copy: clipping is in place
        self.adam.param_groups[0]["lr"] = LR * min(self.step / 4, 1.0)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm=1.0)
        self.adam.step()
        self.step += 1
        for average, parameter in zip(self.shadow, self.trained, strict=True):
            average.lerp_(parameter.detach(), 1 - DECAY)

    def save(self, path):
        ema = {"decay": DECAY, "num_updates": self.step, "shadow_params": self.shadow}
        model, optimizer = self.module.state_dict(), self.adam.state_dict()
        content = {"optimizer": optimizer, "model": model, "ema": ema, "step": self.step}
        torch.save(content, path)

    @property
    def averaged(self):
        module = copy.deepcopy(self.module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        for parameter, average in zip(parameters, self.shadow, strict=True):
            parameter.data.copy_(average)
        return module


def gradients(module, seed):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(size=p.shape).astype(np.float32)
        for name, p in module.named_parameters()
    }


@some("name", NAMES, quick=["ddpmpp"])
def test_a_training_of_pytorch_is_imported_and_goes_on(name, tmp_path):
    # The name says that images are 32x32, twice the golden ones.
    training = Training(network(name, enlarged=2))
    for seed in range(3):
        training.update(gradients(training.module, seed))
    path, out = tmp_path / "checkpoint_9.pth", tmp_path / "w"
    training.save(path)
    assert cli.main(["import", str(path), f"--name={NAMES[name]}", f"--out={out}"]) == 0
    model = scoremle.load(out)
    place = Workdir(out)
    experiment = build(place.config(), levels=place.levels())
    assert model.origin.step == 3 and experiment.training.ema_rate == DECAY

    # Outputs of the parameters and of their average.
    found, apply = published.read(path), jax.jit(experiment.model.network.apply)
    x = np.random.default_rng(4).normal(size=(2, 32, 32, 3)).astype(np.float32)
    labels = golden(name)[2]["labels"][:2]
    for params, module in (
        (found.params, training.module),
        (params_of(model), training.averaged),
    ):
        ours = np.asarray(apply({"params": params}, x, labels))
        assert_near(ours, output(module, x, labels), 1e-4)
    assert tree_hash(found.ema) != tree_hash(found.params)

    # The next update, of the same gradient.
    optimizer = make_optimizer(lr=LR, beta1=0.9, eps=1e-8, warmup=4, grad_clip=1.0)
    template = jax.eval_shape(lambda: init_state(found.params, optimizer))
    state = published.train_state(found, template, path)
    next_gradients = gradients(training.module, 3)
    frozen = {n for n, p in training.module.named_parameters() if not p.requires_grad}
    gradient = pytorch.network_parameters(
        {n: np.zeros_like(g) if n in frozen else g for n, g in next_gradients.items()}
    )
    updates, _ = jax.jit(optimizer.update)(gradient, state.opt_state, state.params)
    training.update(next_gradients)
    theirs = pytorch.network_parameters(
        {n: p.detach().numpy() for n, p in training.module.named_parameters()}
    )
    for a, b in zip(
        jax.tree.leaves(optax.apply_updates(state.params, updates)),
        jax.tree.leaves(theirs),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
