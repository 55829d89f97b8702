"""Free energies of a few particles by a flow that is reweighted, against Monte Carlo.

python examples/boltzmann.py        # minutes of CPU; needs pip install 'scoremle[examples]'

Particles in the plane attract and repel each other by a double well of their distance, with minima
near 2.5 and 5.5; a weak spring holds their centre, so that the partition function Z is finite. A
small network learns the flow from noise to configurations by flow matching, from samples of
Hamiltonian Monte Carlo. Its own samples carry their log p, and so they can be weighed for the true
density, exp(-u):

* two particles: log Z, against quadrature;
* four particles: -log P(A) / P(B), where A are the configurations with at least four short
  distances and B the others, against a long Monte Carlo with its own error.

Chains begin near the origin. Where particles are far apart the quartic force is so stiff that no
proposal is accepted: a chain that began there would stay, and no error over chains would show it.
So two kinds of starts must give the same answer, and both are printed.

The energy does not change when particles are exchanged. The network lacks this symmetry: it is
trained on configurations that are turned, and with their particles in random order. What it has
not learned of the symmetry costs effective samples and biases nothing. The example prints them.
"""

import argparse
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.integrate import simpson

import scoremle
from scoremle.weights import reweigh

# 1. The energy, in units of kT, of particles [b n 2].
MIDDLE, SLOPE, CURVE, SPRING = 4.0, -4.0, 0.9, 0.5


def of_pair(distance):
    away = jnp.square(distance - MIDDLE)
    return (SLOPE * away + CURVE * jnp.square(away)) / 2


def distances(x):
    """The distance of each pair, [b pairs]."""
    first, second = np.triu_indices(x.shape[1], 1)
    return jnp.sqrt(jnp.sum(jnp.square(x[:, first] - x[:, second]), axis=-1) + 1e-12)


def energy(x):
    centre = jnp.sum(jnp.square(jnp.mean(x, axis=1)), axis=-1)
    return jnp.sum(of_pair(distances(x)), axis=1) + SPRING * centre / 2


def log_z_of_two():
    """By quadrature, of the centre and the distance."""
    r = np.linspace(0, 12, 4001)
    radial = simpson(2 * np.pi * r * np.exp(-np.asarray(of_pair(r), np.float64)), x=r)
    return np.log(2 * np.pi / SPRING) + np.log(radial)


def in_region(x):
    return np.asarray(jnp.sum(distances(x) < MIDDLE, axis=1) >= 4)


# 2. Monte Carlo: many chains at once, each from its own start: near the origin, or near a line.
def monte_carlo(particles, rounds, on_a_line=False, chains=256, keep=5):
    """Configurations [rounds / keep, chains, particles, 2] after the chains have forgotten."""
    import blackjax

    shape = (particles, 2)
    kernel = blackjax.hmc(
        lambda x: -energy(x.reshape(1, *shape))[0], step_size=0.12,
        inverse_mass_matrix=jnp.ones(2 * particles), num_integration_steps=12,
    )  # fmt: skip

    @jax.jit
    def run(states, key):
        def once(states, key):
            keys = jax.random.split(key, chains)
            states, info = jax.vmap(kernel.step)(keys, states)
            return states, (states.position, info.is_accepted)

        return jax.lax.scan(once, states, jax.random.split(key, rounds))

    start = jax.random.normal(jax.random.key(0), (chains, 2 * particles))
    line = np.stack([1.5 * np.arange(particles), np.zeros(particles)], axis=1)
    start = line.ravel() + 0.3 * start if on_a_line else 0.8 * start
    states, _ = run(jax.vmap(kernel.init)(start), jax.random.key(1))
    _, (found, accepted) = run(states, jax.random.key(2))
    assert np.min(np.mean(accepted, axis=0)) > 0.5, "a chain does not move"
    return np.asarray(found[::keep]).reshape(-1, chains, *shape)


# 3. The flow: a network that predicts the velocity of the straight path from data to noise.
SDE = scoremle.SDE("straight", scoremle.LinearLogSNR(-12.0, 10.0), prior_std=1.0)
EPS = 1e-3


def network(params, x, sigma):
    """The velocity, as the field that is best for normal data plus what is learned."""
    level = sigma[:, None]
    waves = [level, *(f(np.pi * k * level) for k in (1, 2, 4) for f in (jnp.sin, jnp.cos))]
    h = jnp.concatenate([x, distances(x.reshape(len(x), -1, 2)), *waves], axis=-1)
    for weights, bias in params[:-1]:
        h = jax.nn.silu(h @ weights + bias)
    weights, bias = params[-1]
    return h @ weights + bias


def train(x, steps, width=128):
    """The model that has learned configurations [n particles 2] in random order."""
    n, particles, _ = x.shape
    scale, dims = float(x.std()), 2 * particles
    rng = np.random.default_rng(0)
    sizes = [dims + particles * (particles - 1) // 2 + 7, width, width, width, dims]
    params = [
        (rng.normal(size=s).astype("f") / s[0] ** 0.5, np.zeros(s[1], "f"))
        for s in pairwise(sizes)
    ]

    def batch(i):
        rng = np.random.default_rng([1, i])
        chosen = x[rng.integers(n, size=512)]
        order = np.argsort(rng.random((512, particles)), axis=1)
        chosen = np.take_along_axis(chosen, order[..., None], axis=1)
        angle = rng.uniform(0, 2 * np.pi, 512)
        turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1)
        turned = np.einsum("bij,bkj->bki", turn.reshape(-1, 2, 2), chosen)
        return np.float32(turned.reshape(512, dims) / scale)

    def loss(params, x, key):
        key_t, key_e = jax.random.split(key)
        sigma = (jnp.arange(len(x)) + jax.random.uniform(key_t)) / len(x)
        e = jax.random.normal(key_e, x.shape)
        at = (1 - sigma)[:, None] * x + sigma[:, None] * e
        return jnp.mean(jnp.square(network(params, at, sigma) - (e - x)))

    params = scoremle.fit(
        loss, params, batch, steps=steps, ema_rate=0.995,
        optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
    )  # fmt: skip
    velocity = scoremle.noise_fn(
        jax.tree_util.Partial(network, params), SDE, prediction="u", time_input="sigma"
    )
    bijector = scoremle.Affine(0.0, scale)
    return scoremle.ScoreModel(velocity, SDE, EPS, (dims,), bijector=bijector)


# 4. What the weights say.
def weighed(model, particles, n):
    samples = model.sample(n, jax.random.key(3), log_prob=True)
    found = reweigh(samples, lambda x: -energy(x.reshape(-1, particles, 2)))
    print(found)
    swapped = samples.x.reshape(n, particles, 2)[:200, ::-1].reshape(-1, 2 * particles)
    change = model.log_prob(swapped, jax.random.key(4)).log_prob - samples.log_prob[:200]
    size = np.sqrt(np.mean(np.square(change)))
    print(f"exchanging particles changes log p by {size:.2f} nats in root mean square, u by none")
    return samples.x.reshape(n, particles, 2), found


def free_energy(p, error):
    """-log p / (1 - p), and its standard error."""
    return -np.log(p / (1 - p)), error / (p * (1 - p))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12000, help="training steps")
    parser.add_argument("--samples", type=int, default=4000, help="of the flow")
    parser.add_argument("--rounds", type=int, default=800, help="of Monte Carlo")
    flags = parser.parse_args()

    print("two particles")
    chains = monte_carlo(2, flags.rounds // 4)
    _, found = weighed(train(chains.reshape(-1, 2, 2), flags.steps // 2), 2, flags.samples)
    print(
        f"log Z {found.log_z:.4f} +- {found.stderr:.4f}, solver {found.solver_error:.4f};"
        f" by quadrature {log_z_of_two():.4f}"
    )

    print("\nfour particles")
    chains = monte_carlo(4, flags.rounds)
    x, found = weighed(train(chains.reshape(-1, 4, 2), flags.steps), 4, flags.samples)
    inside = found.expectation(in_region(x).astype(float))
    ours, error = free_energy(inside.mean, inside.stderr)
    solver = inside.solver_error / (inside.mean * (1 - inside.mean))
    print(f"log Z {found.log_z:.4f} +- {found.stderr:.4f}, solver {found.solver_error:.4f}")
    print(f"-log P(A)/P(B): reweighted {ours:.4f} +- {error:.4f}, solver {solver:.4f}")
    others = monte_carlo(4, flags.rounds, on_a_line=True)
    for start, run in {"near the origin": chains, "on a line": others}.items():
        each = in_region(run.reshape(-1, 4, 2)).reshape(run.shape[:2]).mean(axis=0)
        theirs, error = free_energy(each.mean(), each.std(ddof=1) / np.sqrt(len(each)))
        print(f"Monte Carlo, begun {start}: {theirs:.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
