"""What a CPU needs is in programs of a CPU alone: it is chosen where a program is lowered."""

import jax
import jax.numpy as jnp
import pytest

import scoremle
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.likelihood.images import ByElbo, ByOde

STAYS = 'inlineable = "false"'
FIELDS = {"model.nf": 8, "model.ch_mult": (1, 1), "model.attn_resolutions": ()}


@pytest.fixture(scope="module")
def programs():
    """A likelihood, a bound, a training step and a sampler, each with its arguments."""
    experiment = build(published_config("digits", FIELDS), levels=17)
    training = experiment.training
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), training.template.params)
    model, keys = experiment.model.model(params), jax.random.split(jax.random.key(0), 2)
    x = jnp.zeros((2, 8, 8, 1), jnp.uint8)

    def estimated(estimator):
        return lambda model: estimator(model, scoremle.Uniform(), x, keys)["bpd"]

    def step(params):
        loss = training.objective.loss
        return jax.value_and_grad(lambda p: loss(p, x, jax.random.key(1))[0])(params)

    def sampled(model):
        return scoremle.ode_sample(model.noise, model.sde, jnp.zeros((2, 8, 8, 1)), eps=1e-3)

    return {
        "likelihood": (estimated(ByOde(solver=scoremle.Multistep(2))), model),
        "bound": (estimated(ByElbo(2)), model),
        "training step": (step, params),
        "sampler": (sampled, model),
    }


@pytest.mark.parametrize("name", ["likelihood", "bound", "training step", "sampler"])
def test_nothing_of_a_cpu_is_in_a_program_of_a_gpu(programs, name):
    function, argument = programs[name]
    leaves, tree = jax.tree.flatten(argument)
    program = jax.jit(lambda leaves: function(jax.tree.unflatten(tree, leaves)))
    on_cpu, on_gpu = (
        jax.export.export(program, platforms=[platform])(leaves).mlir_module()
        for platform in ("cpu", "cuda")
    )
    assert STAYS in on_cpu and STAYS not in on_gpu
    if name == "training step":  # gradients of convolutions as JAX writes them, for cuDNN
        assert "[f, 0, 1, b]" in on_gpu and "[f, 0, 1, b]" not in on_cpu
