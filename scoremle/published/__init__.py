"""Published checkpoints: of score_flow and score_sde (Flax), and of score_sde_pytorch (.pth).

One idea a file: ``state_dict`` reads Flax's format with care, ``pytorch`` maps names and layouts,
``states`` makes training states of either and writes them back, ``store`` sees published files
among our own checkpoints; ``architecture`` and ``origin`` say what a file holds, by its shapes
and by the name of its folder.
"""

from scoremle.published.architecture import ATTENTION, architecture, flow_architecture
from scoremle.published.origin import origin
from scoremle.published.states import Published, published_tree, read, train_state
from scoremle.published.store import PublishedCheckpoints, checkpoint_files

__all__ = [
    "ATTENTION", "Published", "PublishedCheckpoints", "architecture", "checkpoint_files",
    "flow_architecture", "origin", "published_tree", "read", "train_state",
]  # fmt: skip
