"""A folder as score_flow publishes them: checkpoints of a tiny network and a tiny dequantizer."""

import functools

import numpy as np

from helpers.places import GOLDEN
from scoremle.cli.commands import parser_of
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir

NAME = "cifar10_subvp_likelihood_iw_flip"


FOLDER = GOLDEN / "published" / NAME


FILE = FOLDER / "checkpoints" / "checkpoint_1"


DEQUANTIZER = FOLDER / "flowpp_dequantizer" / "checkpoints" / "checkpoint_1"


SUBVP = "--config=subvp/cifar10_ddpmpp_continuous"


# What config.json of the folder says.
TINY = (
    "--config.model.nf=4",
    "--config.model.ch_mult=(1,2)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=(4,)",
    "--config.data.image_size=8",
)


FLOW = (
    "--config.deq.filters=4",
    "--config.deq.components=2",
    "--config.deq.blocks=1",
    "--config.deq.heads=2",
    "--config.deq.ema_rate=0.8",
)


@functools.cache
def experiment(*flags):
    settings = parser_of("").checked([SUBVP, *TINY, *flags, "--workdir=w", "--mode=eval"])
    return build(settings.config, levels=256)


@functools.cache
def expected():
    with np.load(FOLDER / "expected.npz") as archive:
        return dict(archive)


def restore(store=None):
    store = store or Workdir(FOLDER).snapshots
    return store.restore(experiment().training.template)

