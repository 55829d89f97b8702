"""Training states as published, and as here.

One of Flax 0.3.3 is {step, optimizer: {target, state: {step, param_states}}, lr, model_state,
ema_rate, params_ema, rng}, with {grad_ema, grad_sq_ema} for each parameter: Adam's moments before
bias correction, which are Optax's mu and nu. GroupNorm's parameters had the shape (1, 1, 1, C)
until Flax 0.3.5, and have (C,) since. A dequantizer's parameters lie a level deeper, in "params".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoremle.errors import UserError
from scoremle.files import named
from scoremle.published import pytorch, state_dict
from scoremle.published.origin import mismatch
from scoremle.published.state_dict import Tree
from scoremle.training.checkpoints import Damaged, first_difference, leaves
from scoremle.training.step import TrainState

GROUP_NORM = "GroupNorm_"


class Published(NamedTuple):
    """A training state as published, its arrays under our names and in our shapes.

    Args:
        step: of the training.
        updates: as Adam counts them.
        params: of the network.
        ema: their moving average.
        mu: Adam's first moments.
        nu: Adam's second moments.
        lr: the learning rate.
        ema_rate: of the moving average.
        rng: the key of the original; None: PyTorch's files have none.
    """

    step: int
    updates: int
    params: Tree
    ema: Tree
    mu: Tree
    nu: Tree
    lr: float
    ema_rate: float
    rng: list[int] | None


def read(path: Path) -> Published:
    """The training state in a file.

    Args:
        path: of ``checkpoint_N`` (Flax), or of a file that ends in .pth (PyTorch).

    Raises UserError if the file is damaged or something else.
    """
    try:
        return decode(path)
    except Damaged as error:
        raise UserError(f"{path} can't be read as a published checkpoint: {error}") from None


def decode(path: Path) -> Published:
    """The training state in a file, as ``read`` gives it. Raises Damaged for anything else."""
    of_torch = path.suffix == ".pth"
    content = (pytorch.load_pth if of_torch else state_dict.read)(named(path))
    try:
        return _of_torch(content) if of_torch else _of_flax(content)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Damaged(f"not a training state ({type(error).__name__}: {error})") from None


def train_state(published: Published, template: TrainState, path: Path) -> TrainState:
    """The state to go on from.

    Args:
        published: as it was read.
        template: a state of the wanted form; shapes and dtypes are enough.
        path: of the file, for messages.

    Raises UserError, with the fields and a config that fits, if the network is another one.
    """
    count = np.asarray(published.updates, np.int32)
    moments = {"mu": published.mu, "nu": published.nu}
    opt_state = optax.tree.set(template.opt_state, count=count, **moments)
    step = jnp.asarray(published.step, jnp.int32)
    state = TrainState(step, published.params, published.ema, opt_state)
    if words := first_difference(leaves(state), leaves(template)):
        raise UserError(mismatch(published.params, template.params, path) or f"{path} {words}")
    return state


def published_tree(state: TrainState, *, lr: float, ema_rate: float, rng: list[int]) -> Tree:
    """The state dict of a state of our own, as the original would have saved it.

    Args:
        state: of a training.
        lr: the learning rate.
        ema_rate: of the moving average.
        rng: the key of the training, as two numbers.
    """
    mu, nu = (_shaped_as_published(optax.tree.get(state.opt_state, name)) for name in ("mu", "nu"))
    moments = jax.tree.map(lambda m, v: {"grad_ema": m, "grad_sq_ema": v}, mu, nu)
    (_, updates), *_ = optax.tree.get_all_with_path(state.opt_state, "count")  # Adam's comes first
    return {
        "step": np.asarray(state.step, np.int32),
        "optimizer": {
            "target": _shaped_as_published(state.params),
            "state": {"step": np.asarray(updates, np.int32), "param_states": moments},
        },
        "lr": np.asarray(lr, np.float32),
        "model_state": {},
        "ema_rate": np.asarray(ema_rate, np.float32),
        "params_ema": _shaped_as_published(state.ema),
        "rng": np.asarray(rng, np.uint32),
    }


def _of_flax(content: Tree) -> Published:
    optimizer = content["optimizer"]
    moments = optimizer["state"]["param_states"]
    return Published(
        step=_count(content["step"]),
        updates=_count(optimizer["state"]["step"]),
        params=_shaped_as_here(optimizer["target"]),
        ema=_shaped_as_here(content["params_ema"]),
        mu=_shaped_as_here(_moment(moments, "grad_ema")),
        nu=_shaped_as_here(_moment(moments, "grad_sq_ema")),
        lr=_short(content["lr"]),
        ema_rate=_short(content["ema_rate"]),
        rng=content["rng"].ravel().tolist(),
    )


def _of_torch(content: Tree) -> Published:
    optimizer = content["optimizer"]
    params, ema, mu, nu = pytorch.trees(content)
    return Published(
        step=_count(content["step"]),
        updates=max(_count(adam["step"]) for adam in optimizer["state"].values()),
        params=params,
        ema=ema,
        mu=mu,
        nu=nu,
        lr=float(optimizer["param_groups"][0]["lr"]),
        ema_rate=float(content["ema"]["decay"]),
        rng=None,
    )


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count <= np.iinfo(np.int32).max:
        raise ValueError(f"a count of {count}")
    return count


def _short(value: Any) -> float:
    """The shortest decimal that is this number in float32: what somebody once typed."""
    return float(str(np.float32(value)))


def _moment(states: Tree, name: str) -> Tree:
    return {
        key: value[name] if "grad_ema" in value else _moment(value, name)
        for key, value in states.items()
    }


def _shaped_as_here(tree: Tree) -> Tree:
    if tree.keys() == {"params"}:
        tree = tree["params"]
    return _norms(tree, lambda array: array.reshape(array.shape[-1:]))


def _shaped_as_published(tree: Tree) -> Tree:
    return _norms(jax.tree.map(np.asarray, tree), lambda array: array.reshape(1, 1, 1, -1))


def _norms(tree: Tree, reshape: Callable[[np.ndarray], np.ndarray]) -> Tree:
    """The tree with the arrays in GroupNorm layers reshaped."""
    return {
        name: {leaf: reshape(array) for leaf, array in inside.items()}
        if name.startswith(GROUP_NORM)
        else _norms(inside, reshape)
        if isinstance(inside, dict)
        else _array(inside, name)
        for name, inside in tree.items()
    }


def _array(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is not an array")
    return value
