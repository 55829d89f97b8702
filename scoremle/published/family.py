"""What is known of a model of a published family, beyond what a ScoreModel is."""

from dataclasses import dataclass

from scoremle.core.pixels import Pixels
from scoremle.core.pytree import pytree, static
from scoremle.errors import UserError
from scoremle.likelihood.steps import BySteps
from scoremle.model import ScoreModel

__all__ = ["PIXELS", "PublishedModel"]

# Levels k of 256 in the middle of their bins, at 2k/255 - 1.
PIXELS = Pixels.of_points(256, -1, 1)
# Networks of pixels are of 1024 at most: beyond this, what is taken to be an image fills a memory.
LARGEST_SIDE = 1 << 12


@pytree
@dataclass(frozen=True, repr=False)
class PublishedModel(ScoreModel):
    """A model that others trained.

    Args:
        steps: the bound that its authors report, by the variance and the clipping of its own
            chain of steps; None if it has none that is known here.
        classes: how many labels its noise prediction takes one of as condition; 0: none.
    """

    steps: BySteps | None = None
    classes: int = static(default=0)

    def __post_init__(self) -> None:
        if not all(0 < side <= LARGEST_SIDE for side in self.shape):
            shape = "x".join(map(str, self.shape))
            raise UserError(f"the model's config says that images are {shape}: mend their size")
        super().__post_init__()
