"""log p of vectors: ours beside torchdiffeq, with the same network and the exact trace.

One network in both libraries, the same float32 weights: an MLP of random weights over the noise
prediction of N(0, I), VP from t = 1e-3, 256 vectors of 10 dimensions. torchdiffeq solves the
probability-flow ODE in t, as most code in PyTorch does; the trace is by reverse mode, all
dimensions in one call. The truth is torchdiffeq's, too: dopri8 in float64 at 1e-10. Seconds are of
CPU, the second call's, on one thread of PyTorch; ours are compiled before. Under three minutes.

A second table has milliseconds of calls of the model, of 100 vectors: the first, the median of ten
others, of another number of rows, and of ten where the caller compiles it by ``jax.jit``.

    python benchmarks/vectors.py
"""

import argparse
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchdiffeq import odeint

import scoremle
from scoremle.evaluation import tables

DIMS, BATCH, WIDTH, EPS = 10, 256, 128, 1e-3
NODES, TOLERANCES = (12, 16, 24, 32, 48, 64, 96), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SDE, KEY = scoremle.VP(), jax.random.key(0)


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(DIMS + 1, WIDTH), (WIDTH, WIDTH), (WIDTH, DIMS)]
    return [(rng.normal(size=s) / s[0] ** 0.5).astype(np.float32) for s in sizes]


def noise(params, x, t):
    told = SDE.log_snr(t)[:, None] / 5
    h = jax.nn.silu(jnp.concatenate([x, told], axis=1) @ params[0])
    h = jax.nn.silu(h @ params[1])
    return SDE.sigma(t)[:, None] * x + 0.3 * h @ params[2]


def rates_of(params: list[torch.Tensor]):
    """d(x, log p)/dt, and a count of the evaluations."""
    low, high, count = SDE.beta_min, SDE.beta_max, [0]
    unit = torch.eye(DIMS, dtype=params[0].dtype)[:, None].expand(DIMS, BATCH, DIMS)

    def rates(t: torch.Tensor, state: tuple) -> tuple:
        count[0] += 1
        integral = low * t + (high - low) * t**2 / 2
        weight, variance = (low + t * (high - low)) / 2, -torch.expm1(-integral)
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            told = ((-integral - torch.log(variance)) / 5).to(x.dtype).expand(BATCH, 1)
            h = torch.nn.functional.silu(torch.cat([x, told], 1) @ params[0])
            h = torch.nn.functional.silu(h @ params[1])
            sigma = torch.sqrt(variance).to(x.dtype)
            drift = -weight * x + weight / sigma * (sigma * x + 0.3 * h @ params[2])
            (rows,) = torch.autograd.grad(drift, x, unit, is_grads_batched=True)
        return drift.detach().to(x.dtype), torch.einsum("dbd->b", rows)

    return rates, count


def by_torchdiffeq(
    x: np.ndarray, dtype: torch.dtype, method: str, tolerance: float
) -> tuple[np.ndarray, int, float]:
    """log p, evaluations, and seconds of CPU."""
    rates, count = rates_of([torch.from_numpy(a).to(dtype) for a in weights()])
    state = torch.from_numpy(x).to(dtype), torch.zeros(BATCH, dtype=dtype)
    t, began = torch.tensor([EPS, 1.0], dtype=torch.float64), time.process_time()
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    z, change = (a[-1] for a in odeint(rates, state, t, **options))
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + change
    return log_prob.double().numpy(), count[0], time.process_time() - began


def value(model: scoremle.ScoreModel, x: jax.Array) -> jax.Array:
    return model.log_prob(x, KEY).log_prob.sum()


CALLS = {
    "log_prob": lambda model, x: model.log_prob(x, KEY),
    "its gradient in x": jax.grad(value, argnums=1),
    "its gradient in parameters": jax.grad(value),
    "bound": lambda model, x: model.bound(x, KEY),
    "encode": lambda model, x: model.encode(x),
    "decode": lambda model, x: model.decode(x),
}


def times_of_calls(model: scoremle.ScoreModel, x: jax.Array) -> str:
    def milliseconds(call, x: jax.Array) -> float:
        began = time.perf_counter()
        jax.block_until_ready(call(model, x))
        return 1000 * (time.perf_counter() - began)

    def median(call) -> str:
        return f"{np.median([milliseconds(call, x[:100]) for _ in range(10)]):.1f}"

    rows = []
    for name, call in CALLS.items():
        first, others = f"{milliseconds(call, x[:100]):.0f}", median(call)
        fewer, compiled = f"{milliseconds(call, x[:90]):.0f}", jax.jit(call)
        milliseconds(compiled, x[:100])
        rows.append((name, first, others, fewer, median(compiled)))
    return tables.table(("call", "first, ms", "others", "first of 90", "by jax.jit"), rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "torchdiffeq")))
    x = np.random.default_rng(1).normal(size=(BATCH, DIMS)).astype(np.float32)
    truth, _, _ = by_torchdiffeq(x, torch.float64, "dopri8", 1e-10)
    params = [jnp.asarray(a) for a in weights()]
    model = scoremle.ScoreModel(jax.tree_util.Partial(noise, params), SDE, EPS, (DIMS,))
    rows = []

    def row(name: str, log_prob: np.ndarray, count: int, taken: float, stated: str) -> None:
        error = np.abs(np.asarray(log_prob, np.float64) - truth)
        errors = f"{error.mean():.1e}", f"{error.max():.1e}"
        rows.append((name, str(count), f"{taken:.3f}", *errors, stated))

    compiled = jax.jit(lambda model, x, solver: model.log_prob(x, KEY, solver=solver))
    for nodes in NODES:
        solver = scoremle.Multistep(nodes)
        jax.block_until_ready(compiled(model, x, solver))
        began = time.process_time()
        found = jax.block_until_ready(compiled(model, x, solver))
        taken, stated = time.process_time() - began, f"{found.solver_error.mean():.1e}"
        row(f"ours, {nodes} nodes", found.log_prob, int(found.evaluations[0]), taken, stated)
    for tolerance in TOLERANCES:
        by_torchdiffeq(x, torch.float32, "dopri5", tolerance)
        found = by_torchdiffeq(x, torch.float32, "dopri5", tolerance)
        row(f"torchdiffeq, dopri5, {tolerance:g}", *found, "")
    header = ("method", "evaluations", "CPU s", "error, mean", "max", "stated, mean")
    print(tables.table(header, rows))
    print(times_of_calls(model, jnp.asarray(x)))


if __name__ == "__main__":
    main()
