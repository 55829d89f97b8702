"""Labels of networks of classes: of a class that there is not, the output is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some

from scoremle.errors import UserError
from scoremle.nn.ddpmpp import DDPMpp
from scoremle.zoo.adm import ADM
from scoremle.zoo.blocks import class_rows
from scoremle.zoo.edm_networks import Labelled
from scoremle.zoo.unet2d import UNet2D

CLASSES = 3
LABELS = np.array([-1, CLASSES, 0, CLASSES - 1])
X, T = np.zeros((len(LABELS), 4, 4, 3), np.float32), np.ones(len(LABELS), np.float32)


def params(network, *inputs):
    return jax.jit(network.init)(jax.random.key(0), X, T, *inputs)["params"]


def flax(network):
    given = {"params": params(network, LABELS)}
    return lambda label: network.apply(given, X, T, label)


def adm():
    return flax(
        ADM(
            num_channels=32, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(),
            class_cond=True, num_classes=CLASSES,
        )
    )  # fmt: skip


def unet2d():
    return flax(
        UNet2D(
            block_out_channels=(8,), down_block_types=("DownBlock2D",), norm_num_groups=4,
            up_block_types=("UpBlock2D",), layers_per_block=1, num_class_embeds=CLASSES,
        )
    )  # fmt: skip


def song():
    network = DDPMpp(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    given = {"network": params(network), "rows": jnp.ones((CLASSES, 8))}
    return lambda label: Labelled(network)(given, X, T, label)


@some("network", [adm, unet2d, song], quick=[song])
def test_a_class_that_there_is_not_is_nan_and_no_other_class(network):
    output = jax.jit(network())(LABELS)
    assert (np.isnan(output) == ((LABELS < 0) | (LABELS >= CLASSES))[:, None, None, None]).all()


@pytest.mark.parametrize(
    "labels", [np.ones(3), np.eye(3, dtype=int), np.ones((3, 1), int), np.int32(1), np.eye(1) > 0]
)
def test_what_are_no_labels_is_refused(labels):
    with pytest.raises(UserError, match="for each image"):
        class_rows(labels, 3)


def test_labels_may_be_of_a_type_that_does_not_hold_the_number_of_classes():
    np.testing.assert_array_equal(class_rows(np.array([7, 255], np.uint8), 1000), [7, 255])
