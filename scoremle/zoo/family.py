"""A model of a published family, as its loaders give it."""

from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.likelihood.steps import BySteps
from scoremle.model import Origin, ScoreModel
from scoremle.types import NoiseFn

# Levels k of 256 in the middle of their bins, at 2k/255 - 1.
PIXELS = Pixels.of_points(256, -1, 1)
# Networks of pixels are of 1024 at most: beyond this, what is taken to be an image fills a memory.
LARGEST_SIDE = 1 << 12


def published_model(
    noise: NoiseFn,
    sde: SDE,
    eps: float,
    shape: tuple[int, ...],
    *,
    chain: BySteps | None = None,
    classes: int = 0,
    pixels: Pixels = PIXELS,
    middles: bool = False,
) -> ScoreModel:
    """The model of images of 256 levels that others trained.

    Args:
        noise, sde, eps, shape: as ``ScoreModel`` takes them.
        chain: the bound that its authors report, by the variance and the clipping of its own
            chain of steps; None if it has none that is known here.
        classes: how many labels its noise prediction takes one of as condition; 0: none.
        pixels: the levels that it was trained on, in the middle of their bins.
        middles: its last noise is too little to hide that they are nowhere else.

    Raises UserError for a shape that no image has.
    """
    if not all(0 < side <= LARGEST_SIDE for side in shape):
        size = "x".join(map(str, shape))
        raise UserError(f"the model's config says that images are {size}: mend their size")
    origin = Origin(published=True, chain=chain, classes=classes, middles=middles)
    return ScoreModel(noise, sde, eps, shape, pixels, origin=origin)
