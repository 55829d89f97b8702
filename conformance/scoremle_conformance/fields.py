"""Fields: what an exact network of a subject would give, as a function of numpy, torch or JAX.

    eps, x_0     the means of the noise and of the data, given x
    score        -eps / sigma
    v            alpha eps - sigma x_0             (Salimans and Ho, arXiv 2202.00512)
    velocity     alpha' x_0 + sigma' eps           the probability flow dx/dt on this path

All are computed in a form that divides by no vanishing number.
"""

from dataclasses import dataclass
from typing import Any

from scoremle_conformance.arrays import like
from scoremle_conformance.paths import Path
from scoremle_conformance.subjects import Subject

__all__ = ["OUTPUTS", "Field"]

# (score, x_0, scales) -> the output
OUTPUTS = {
    "eps": lambda score, x_0, at: -at.sigma * score,
    "v": lambda score, x_0, at: -at.alpha * at.sigma * score - at.sigma * x_0,
    "x_0": lambda score, x_0, at: x_0,
    "score": lambda score, x_0, at: score,
    "velocity": lambda score, x_0, at: at.d_alpha * x_0 - at.d_sigma * at.sigma * score,
}


@dataclass
class Field:
    """The exact network of ``subject`` on ``path``, called as ``field(x, t)``.

    ``x`` is [..., D] of any framework, in its precision. In numpy it may be complex, so that a
    complex step gives derivatives. ``t`` is a number or one for each row. A conditional network is
    called as ``field(x, t, labels)`` with a whole number for each row.

    Args:
        subject: whose density it has.
        path: the noise at each time; the density is at ``path.start``.
        output: "eps", "v", "x_0", "score" or "velocity".
    """

    subject: Subject
    path: Path
    output: str
    calls: int = 0

    @property
    def dims(self) -> int:
        return self.subject.dims

    def __call__(self, x: Any, t: Any, labels: Any = None) -> Any:
        self.calls += 1
        t = like(t, x)
        scales = self.path.scales(t[..., None] if t.ndim else t)
        score, x_0 = self.subject.expect(x, scales, labels)
        return OUTPUTS[self.output](score, x_0, scales)
