"""A frozen copy of a PyTorch module, in its present state, and products with its Jacobian.

    y = f(x, label, condition),      J'v for each of several probes v

All probes share one forward pass, and each has a backward pass. The copy is in float32 and in
evaluation mode, without gradients of parameters, on the device of the original, which stays as it
is. Whatever the module does wrong is one line.
"""

import contextlib
import copy
import io
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoremle.errors import UserError, first_line
from scoremle.interop.wrappers import DenoiserMean
from scoremle.training.checksums import tree_hash

# The choice of an attention kernel is one for the whole process.
_CHOICE = threading.Lock()


class Frozen:
    """A copy of ``module``, which is called as ``module(x, label, *condition)``.

    Raises UserError if it can't be copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module.inside if isinstance(module, DenoiserMean) else module).__name__
        try:
            # What torch.compile gives is traced anew in every thread: its origin is taken.
            self.module = copy.deepcopy(getattr(module, "_orig_mod", module))
            self.module.eval().float().requires_grad_(False)
        except Exception as error:
            words = first_line(error, named=True)
            raise UserError(
                f"{self.name} can't be copied and frozen: {words}; give a plain nn.Module whose"
                " parameters are there"
            ) from error
        state = [*self.module.parameters(), *self.module.buffers()]
        if any(tensor.is_meta for tensor in state):
            raise UserError(f"{self.name} is on the device meta, without numbers: load them first")
        self.device = state[0].device if state else torch.device("cpu")

    def __repr__(self) -> str:
        """Its name, and the hash of its numbers, which are not leaves of a model."""
        numbers = [*self.module.named_parameters(), *self.module.named_buffers()]
        return f"{self.name} {tree_hash({name: x.cpu().numpy() for name, x in numbers})}"

    def __call__(self, x: Tensor, label: Tensor, *condition: Tensor) -> Tensor:
        """The output. Raises UserError if the module fails or gives no float32 like ``x``."""
        try:  # with copies, which it may write into
            y = self.module(*(a.clone() for a in (x, label, *condition)))
        except Exception as error:
            shapes = ", ".join(f"{_dtype(a)} {list(a.shape)}" for a in (x, label, *condition))
            words = first_line(error, named=True)
            raise UserError(f"{self.name} failed on inputs {shapes}: {words}") from error
        if not isinstance(y, Tensor):
            raise UserError(
                f"{self.name} gives a {type(y).__name__}, not a tensor: wrap it in a module whose"
                " forward returns the tensor"
            )
        if y.shape != x.shape or y.dtype != x.dtype:
            raise UserError(
                f"{self.name} gives {_dtype(y)} {list(y.shape)}, where its input is {_dtype(x)}"
                f" {list(x.shape)}: wrap it in a module whose output is like its input"
            )
        return y

    def given(self, tensor: Tensor) -> Tensor:
        """The tensor on the module's device; integers are those that tables are read with."""
        tensor = tensor.to(self.device)
        whole = not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        return tensor.long() if whole else tensor

    def quietly(self, *inputs: Tensor) -> Tensor:
        """The output without gradients. Raises UserError if the module prints, or for NaN."""
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()) as printed:
            y = self(*inputs).detach()  # it may turn gradients on, as that of an energy does
        if text := printed.getvalue().strip():
            raise UserError(f"{self.name} prints when it is called: {text.splitlines()[0]!r}")
        if not torch.isfinite(y).all():
            raise UserError(f"{self.name} gives NaN or infinity for normal random inputs")
        return y

    def products(self, inputs: Sequence[Tensor], probes: Tensor) -> tuple[Tensor, Tensor]:
        """f at ``inputs``, and J'v in x for each of the probes [k b ...]."""
        with torch.set_grad_enabled(len(probes) > 0):
            x = inputs[0].detach().requires_grad_(len(probes) > 0)
            y = self(x, *inputs[1:])
            found = [self._derivatives((v * y).sum(), [x])[0] for v in probes]
        return y.detach(), torch.stack(found) if found else probes

    def pull_back(
        self, inputs: Sequence[Tensor], probes: Tensor, dy: Tensor, dproducts: Tensor
    ) -> tuple[Sequence[Tensor], Tensor]:
        """The derivatives of <dy, y> + <dproducts, products> in the inputs, and in the probes.

        Derivatives in integer inputs are zero.
        """
        places = [a.detach().requires_grad_(a.is_floating_point()) for a in (*inputs, probes)]
        real = [a for a in places if a.requires_grad]
        with torch.enable_grad(), _differentiable_twice(len(probes) > 0):
            y = self(*places[:-1])
            total = (dy * y).sum()
            for v, dproduct in zip(places[-1], dproducts, strict=True):
                (product,) = self._derivatives((v * y).sum(), places[:1], create_graph=True)
                total = total + (dproduct * product).sum()
            found = dict(zip(map(id, real), self._derivatives(total, real), strict=True))
        *of_inputs, of_probes = (found.get(id(a), torch.zeros_like(a)) for a in places)
        return of_inputs, of_probes

    def _derivatives(
        self, total: Tensor, places: Sequence[Tensor], create_graph: bool = False
    ) -> Sequence[Tensor]:
        # Of a number: with a vector, PyTorch would import its compiler, which takes two seconds.
        try:
            return torch.autograd.grad(
                total, places, retain_graph=True, create_graph=create_graph,
                materialize_grads=True,
            )  # fmt: skip
        except Exception as error:
            words = first_line(error, named=True)
            raise UserError(f"{self.name} can't be differentiated: {words}") from error


@contextlib.contextmanager
def _differentiable_twice(wanted: bool) -> Iterator[None]:
    """Attention by plain products: the fused kernels have no second derivative."""
    if not wanted:
        yield
        return
    with _CHOICE, sdpa_kernel(SDPBackend.MATH):
        yield


def _dtype(a: Tensor) -> str:
    return str(a.dtype).removeprefix("torch.")
