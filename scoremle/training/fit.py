"""Trains a network of one's own on arrays, by the loop that trains experiments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoremle.core.arguments import (
    as_array,
    check_count,
    check_kind,
    check_number,
    check_seed,
    shown,
)
from scoremle.errors import UserError, first_line
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.loop import Intervals, Loop
from scoremle.training.program import make_program
from scoremle.training.step import Loss, Params, init_state
from scoremle.training.writers import Console

__all__ = ["fit"]


def fit(
    loss: Loss,
    params: Params,
    batch: Callable[[int], Any],
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    ema_rate: float = 0.999,
    seed: int = 0,
    every: int = 1000,
    folder: str | Path | None = None,
) -> Params:
    """Minimises a loss; returns the running average of the parameters.

    Args:
        loss: of parameters, a batch and a key: a scalar, such as the mean of ``denoising_loss``.
        params: the first parameters, a tree of arrays, which stay as they are.
        batch: gives the examples of step i, an array [b ...] or a tree of them. Where training
            goes on from a checkpoint, i goes on, too.
        steps: in all.
        optimizer: of optax. It gets the loss, too, as ``optax.contrib.reduce_on_plateau`` needs.
        ema_rate: the share of the average that a step keeps.
        seed: of the keys.
        every: how many steps pass between two lines, and between two checkpoints.
        folder: of checkpoints, of which the newest two are kept. With one, the same call goes on
            from the newest that is whole, and ends with the same bits as a training that was not
            stopped. None: no checkpoints.

    Raises UserError for a loss that is not a real number, parameters that are not reals, an
    optimizer that can't update them, a batch without an axis of examples, a loss, gradient or
    parameter that is not finite, and a folder with checkpoints of other parameters, of another
    seed or ``ema_rate``, or of more steps; Stopped after SIGTERM or Ctrl-C, when the step
    is saved.

    Example:
        >>> import optax
        >>> x = 3 + jax.random.normal(jax.random.key(0), (500,))
        >>> mean = scoremle.fit(
        ...     lambda mean, x, key: jnp.mean(jnp.square(x - mean)), jnp.zeros(()),
        ...     lambda i: x, steps=300, optimizer=optax.adam(0.1), ema_rate=0.9,
        ... )  # doctest: +ELLIPSIS
        step ...300/300  loss ...
        >>> print(f"{mean:.1f}")
        3.0
    """
    check_kind("loss", loss, Callable, "lambda params, x, key: jnp.mean(...)")
    check_kind("batch", batch, Callable, "lambda i: x")
    such = "optax.adam(1e-3)"
    check_kind("optimizer", optimizer, optax.GradientTransformation, such)
    check_kind("folder", folder, str | Path | None, "a path, or None")
    if folder == "":
        raise UserError("folder is an empty name: give a path, or None for no checkpoints")
    check_count("steps", steps)
    check_count("every", every)
    check_number("ema_rate", ema_rate, 0, 1)
    check_seed(seed)
    _check_reals(params)
    _check_optimizer(optimizer, params)
    store = None if folder is None else Checkpoints(Path(folder), keep=2)
    note = {"seed": seed, "ema_rate": ema_rate}
    if store:
        _check_begun(store, steps, note)
    training = Loop(
        make_program(loss, optimizer, ema_rate, seed=seed),
        lambda _: lambda i: _checked(batch(i)),
        Intervals(steps, 1, every, steps, every, every),
        preemption=store,
        writers=[Console(steps)],
        note=note,
    )
    # Copies, since the loop uses up the state that it begins with.
    found = training.run(init_state(jax.tree.map(jnp.array, params), optimizer))
    return jax.tree.map(lambda e, p: e.astype(p.dtype), found.ema, found.params)


def _check_reals(params: Params) -> None:
    """Raises UserError for parameters that have no gradient."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise UserError("params has no arrays")
    for leaf in leaves:
        if not jnp.issubdtype(as_array(leaf, "params").dtype, jnp.floating):
            raise UserError(f"params must be arrays of reals, not {shown(leaf)}")


def _check_optimizer(optimizer: optax.GradientTransformation, params: Params) -> None:
    """Raises UserError for an optimizer that does not take the parameters, or calls the loss."""
    update = optax.with_extra_args_support(optimizer).update
    try:
        jax.eval_shape(lambda p: update(p, optimizer.init(p), p, value=jnp.zeros(())), params)
    except Exception as error:
        words = first_line(error, named=True)
        raise UserError(f"optimizer can't update these parameters: {words}") from error


def _checked(examples: Any) -> Any:
    """A batch. Raises UserError if its arrays have no axis of examples, or not the same."""
    counts = {np.shape(as_array(leaf, "a batch"))[:1] for leaf in jax.tree.leaves(examples)}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise UserError("batch(i) must be arrays with an axis of examples, the same for all")
    return examples


def _check_begun(store: Checkpoints, steps: int, note: dict[str, Any]) -> None:
    """Raises UserError for checkpoints of a training by other arguments."""
    for number in store.numbers():
        try:
            before = store.meta(number)
        except UserError:  # a damaged one is passed over, with a warning
            continue
        wanted = note | {"step": min(steps, number)}
        if other := [name for name in wanted if before.get(name, wanted[name]) != wanted[name]]:
            words = " and ".join(f"{name} {before[name]}, not {wanted[name]}" for name in other)
            raise UserError(f"{store.path(number)} has {words}: give the training another folder")
