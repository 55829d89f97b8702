"""A SongUNet of EDM that is as small as one can be: a level of 8x8x3, with one block."""

import json
from pathlib import Path

from helpers.weights import drawn
from scoremle.published import safetensors

__all__ = ["write_song"]

WIDTH, EMBEDDED = 8, 32
FIELDS = {
    "model_type": "SongUNet", "img_resolution": 8, "img_channels": 3, "model_channels": WIDTH,
    "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


def write_song(folder: Path, kind: str, classes: int = 0) -> Path:
    """Writes a model of the class ``kind`` with random weights, and gives its file."""
    path = folder / "net.safetensors"
    safetensors.write(path, drawn(dict(_shapes(classes))), {})
    fields = {**FIELDS, "class": kind, "label_dim": classes}
    path.with_suffix(".json").write_text(json.dumps(fields))
    return path


def _shapes(classes):
    if classes:
        yield from _layer("map_label", WIDTH, classes)
    yield from _layer("map_layer0", EMBEDDED, WIDTH)
    yield from _layer("map_layer1", EMBEDDED, EMBEDDED)
    yield from _layer("enc.8x8_conv", WIDTH, 3, 3, 3)
    yield from _block("enc.8x8_block0", WIDTH)
    yield from _block("dec.8x8_in0", WIDTH, attends=True)
    yield from _block("dec.8x8_in1", WIDTH)
    yield from _block("dec.8x8_block0", 2 * WIDTH)
    yield from _block("dec.8x8_block1", 2 * WIDTH)
    yield from _layer("dec.8x8_aux_norm", WIDTH)
    yield from _layer("dec.8x8_aux_conv", 3, WIDTH, 3, 3)


def _block(name, inside, attends=False):
    yield from _layer(f"{name}.norm0", inside)
    yield from _layer(f"{name}.conv0", WIDTH, inside, 3, 3)
    yield from _layer(f"{name}.affine", WIDTH, EMBEDDED)
    yield from _layer(f"{name}.norm1", WIDTH)
    yield from _layer(f"{name}.conv1", WIDTH, WIDTH, 3, 3)
    if inside != WIDTH:
        yield from _layer(f"{name}.skip", WIDTH, inside, 1, 1)
    if attends:
        yield from _layer(f"{name}.norm2", WIDTH)
        yield from _layer(f"{name}.qkv", 3 * WIDTH, WIDTH, 1, 1)
        yield from _layer(f"{name}.proj", WIDTH, WIDTH, 1, 1)


def _layer(name, *weight):
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]
