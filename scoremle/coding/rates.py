"""Rates of compressed images beside those that the model states, and the mark of their files."""

from dataclasses import dataclass

from scoremle.terminal import counted

__all__ = ["KIND", "RATES_FILE", "Rates"]

# What a file of compressed images begins with.
KIND = b"scoremle images, coded"
# In a working directory: the rates of what was compressed last by its model.
RATES_FILE = "coded.json"


@dataclass(frozen=True)
class Rates:
    """Rates of compressed images, all in bits/dim.

    Args:
        images: how many.
        steps: of the chain.
        net: of the images on the stack, without the initial bits.
        gross: of the whole file.
        drawn: what the bound's terms are for the latents that were drawn.
        stated: the mean of the chain's bound over the images, which is that of ``net``.
        stderr: the standard error of ``drawn - stated``, over images and draws; None of one image.
        plain: the share of images that are stored plainly.
        size: bytes of the file.
        checkpoint: of the model in its working directory; None: it is not known.
    """

    images: int
    steps: int
    net: float
    gross: float
    drawn: float
    stated: float
    stderr: float | None
    plain: float
    size: int
    checkpoint: int | None = None

    @property
    def line(self) -> str:
        """The rate beside the one that is stated."""
        error = "" if self.stderr is None else f" +- {self.stderr:.3f}"
        return (
            f"coded: {self.net:.3f} bits/dim, stated {self.stated:.3f}{error} (the bound of"
            f" {self.steps} steps, over {counted(self.images, 'image')})"
        )
