"""Published checkpoints: those of score_flow and score_sde (Flax), and of score_sde_pytorch (.pth).

A training state of Flax 0.3.3 is {step, optimizer: {target, state: {step, param_states}}, lr,
model_state, ema_rate, params_ema, rng}, with {grad_ema, grad_sq_ema} for each parameter: Adam's
moments before bias correction, which are Optax's mu and nu. GroupNorm's parameters had the shape
(1, 1, 1, C) until Flax 0.3.5, and have (C,) since. A dequantizer's parameters lie one level deeper,
under "params".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from scoremle.checkpoint import Checkpoints, Damaged, Restored, difference, leaves
from scoremle.errors import UserError
from scoremle.official import pytorch, state_dict
from scoremle.official.architecture import ATTENTION, architecture, differences
from scoremle.official.origin import Origin, config_file, origin
from scoremle.official.state_dict import Tree
from scoremle.train import TrainState

__all__ = [
    "ATTENTION",
    "Damaged",
    "Origin",
    "Published",
    "PublishedCheckpoints",
    "architecture",
    "config_file",
    "files",
    "origin",
    "published_tree",
    "read",
    "train_state",
]

GROUP_NORM = "GroupNorm_"


class Published(NamedTuple):
    """A training state as published, under this library's names and shapes."""

    step: int
    params: Tree
    ema: Tree
    mu: Tree
    nu: Tree
    updates: int  # as Adam counts them
    lr: float
    ema_rate: float
    rng: list[int] | None  # the original's key; PyTorch has none


def read(path: Path) -> Published:
    """The training state in a file. Raises UserError if it is damaged or something else."""
    try:
        return _read(path)
    except Damaged as error:
        raise UserError(f"{path} can't be read as a published checkpoint: {error}") from None


def files(folder: Path) -> dict[int, Path]:
    """The published checkpoints in a folder, ``checkpoint_N`` or ``checkpoint_N.pth``, by N."""
    found = {}
    for path in sorted(folder.glob("checkpoint_*")):
        number = path.name.removeprefix("checkpoint_").removesuffix(".pth")
        if number.isdecimal() and path.is_file():
            found[int(number)] = path
    return found


def train_state(published: Published, template: TrainState, path: Path) -> TrainState:
    """The state to go on from, in the form of ``template`` (shapes and dtypes are enough).

    Raises UserError, with the field and a config that fits, if the network is another one.
    """
    opt_state = optax.tree.set(
        template.opt_state,
        count=np.asarray(published.updates, np.int32),
        mu=published.mu,
        nu=published.nu,
    )
    step = np.asarray(published.step, np.int32)
    state = TrainState(step, published.params, published.ema, opt_state)
    if words := difference(leaves(state), leaves(template)):
        raise UserError(_mismatch(published.params, template.params, path) or f"{path} {words}")
    return state


def published_tree(state: TrainState, *, lr: float, ema_rate: float, rng: list[int]) -> Tree:
    """The state dict, as the original would have saved it, of a state of our own."""
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


class PublishedCheckpoints(Checkpoints):
    """A store of checkpoints that also sees published files among them.

    What is saved is saved as ever; a published file is read, never altered or removed. One whose
    name is needed is put aside as ``checkpoint_N.published``.
    """

    def published(self) -> list[int]:
        """Numbers of those that are published files, ascending."""
        return sorted(self._files())

    def numbers(self) -> list[int]:
        return sorted({*self.own(), *self._files()})

    def path(self, number: int) -> Path:
        return self._files().get(number, super().path(number))

    def save(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        if file := self._files().get(number):
            file.rename(file.with_suffix(".published"))
        super().save(number, tree, meta)

    def meta(self, number: int) -> dict[str, Any]:
        file = self._files().get(number)
        return _meta(read(file)) if file else super().meta(number)

    def restore(self, template: Any, number: int | None = None) -> Restored:
        only = self.numbers() if self.published() else []
        # With no other to fall back on, what is wrong with the file is the message.
        return super().restore(template, only[0] if number is None and len(only) == 1 else number)

    def _restore(self, template: Any, number: int) -> Restored:
        file = self._files().get(number)
        if not file:
            return super()._restore(template, number)
        published = _read(file)
        return Restored(train_state(published, template, file), _meta(published), number)

    def _files(self) -> dict[int, Path]:
        """By number, but for those of which there is a checkpoint of our own."""
        own = self.own()
        return {number: path for number, path in files(self.folder).items() if number not in own}


def _meta(published: Published) -> dict[str, Any]:
    return {"step": published.step, "rng": published.rng}


# Reading -----------------------------------------------------------------------------------------


def _read(path: Path) -> Published:
    content = pytorch.load(path) if path.suffix == ".pth" else state_dict.read(path)
    try:
        return _of_torch(content) if path.suffix == ".pth" else _of_flax(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"not a training state ({type(error).__name__}: {error})") from None


def _of_flax(content: Tree) -> Published:
    optimizer = content["optimizer"]
    moments = optimizer["state"]["param_states"]
    trees = (
        optimizer["target"],
        content["params_ema"],
        _moment(moments, "grad_ema"),
        _moment(moments, "grad_sq_ema"),
    )
    return Published(
        _count(content["step"]),
        *(_shaped_as_here(tree) for tree in trees),
        updates=_count(optimizer["state"]["step"]),
        lr=_short(content["lr"]),
        ema_rate=_short(content["ema_rate"]),
        rng=content["rng"].ravel().tolist(),
    )


def _of_torch(content: Tree) -> Published:
    optimizer = content["optimizer"]
    return Published(
        _count(content["step"]),
        *pytorch.trees(content),
        updates=max(_count(adam["step"]) for adam in optimizer["state"].values()),
        lr=float(optimizer["param_groups"][0]["lr"]),
        ema_rate=float(content["ema"]["decay"]),
        rng=None,
    )


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
    host = jax.tree.map(np.asarray, tree)
    return _norms(host, lambda array: array.reshape(1, 1, 1, -1))


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
        raise ValueError(f"{name} is no array")
    return value


def _short(value: Any) -> float:
    """The shortest decimal that is this number in float32, as somebody typed it."""
    return float(str(np.float32(value)))


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count <= np.iinfo(np.int32).max:
        raise ValueError(f"a count of {count}")
    return count


# Mismatch ----------------------------------------------------------------------------------------


def _mismatch(params: Tree, needed: Tree, path: Path) -> str | None:
    """Which fields of the network differ, and which config fits, in one line."""
    try:
        different = differences(params, needed)
    except Damaged:  # a dequantizer
        return None
    if not different:
        return None
    facts = ", ".join(f"{_field(n)} is {a!r}, not {b!r}" for n, (a, b) in different.items())
    known = origin(path)
    file = config_file(known, architecture(params))
    if file and known:
        advice = f"use --config={file}"
    elif file:
        advice = f"use a config such as {file}"
    else:
        advice = f"set {flags({name: a for name, (a, _) in different.items()})}"
    return f"{path} holds another network than the config says: {facts}; {advice}"


def flags(fields: dict[str, Any]) -> str:
    """What to type to set fields of an architecture."""
    stated = {name: value for name, value in fields.items() if name != ATTENTION}
    typed = [f"--config.{_field(name)}={value!r}".replace(" ", "") for name, value in stated.items()]
    if ATTENTION in fields:
        typed.append("--config.model.attn_resolutions=...")
    return " ".join(typed)


def _field(name: str) -> str:
    if name == ATTENTION:
        return name
    return f"{'data' if name == 'num_channels' else 'model'}.{name}"
