"""Parameters and training states as score_sde_pytorch saves them, without PyTorch."""

from collections import Counter

import flax.traverse_util
import numpy as np


def order(config):
    """The parts of a network in the order of score_sde_pytorch's ``all_modules``."""
    model, size = config["model"], config["data"]["image_size"]
    counts = Counter()

    def part(kind):
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}"

    block = {"biggan": "ResnetBlockBigGANpp", "ddpm": "ResnetBlockDDPMpp"}[model["resblock_type"]]
    biggan = model["resblock_type"] == "biggan"
    levels = len(model["ch_mult"])

    def attention(level):
        return [part("AttnBlockpp")] if size >> level in model["attn_resolutions"] else []

    if model["embedding_type"] == "fourier":
        yield part("GaussianFourierProjection")
    yield from (part("Dense"), part("Dense"), part("Conv"))
    for level in range(levels):
        for _ in range(model["num_res_blocks"]):
            yield part(block)
            yield from attention(level)
        if level < levels - 1:
            yield part(block if biggan else "Downsample")
            if model["progressive_input"] != "none":
                yield part("Downsample")
            if model["progressive_input"] == "input_skip":
                yield part("Combine")
    yield from (part(block), part("AttnBlockpp"), part(block))
    for level in reversed(range(levels)):
        yield from (part(block) for _ in range(model["num_res_blocks"] + 1))
        yield from attention(level)
        first = level == levels - 1
        if model["progressive"] != "none" and not first:
            yield part("Upsample")
        if model["progressive"] == "output_skip" or (model["progressive"] == "residual" and first):
            yield from (part("GroupNorm"), part("Conv"))
        if level > 0:
            yield part(block if biggan else "Upsample")
    if model["progressive"] != "output_skip":
        yield from (part("GroupNorm"), part("Conv"))


def as_pytorch(config, params):
    """Parameters under the names and in the layouts of score_sde_pytorch."""
    arrays = {}
    for number, name in enumerate(order(config)):
        for path, array in flax.traverse_util.flatten_dict(params.get(name, {})).items():
            *above, leaf = path
            if leaf in ("kernel", "scale", "weight"):
                leaf = "weight"
                array = np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array
            above = ["Conv"] if name.startswith("Combine") else above
            arrays[".".join(["module.all_modules", str(number), *above, leaf])] = array.copy()
    return arrays


def as_checkpoint(config, params):
    """A training state: step 7, averages twice the parameters, moments three and four times."""
    model = as_pytorch(config, params)
    fixed = [name for name in model if name.endswith("all_modules.0.W")]
    adam = {
        i: {"step": 7, "exp_avg": 3 * array, "exp_avg_sq": 4 * array}
        for i, (name, array) in enumerate(model.items())
        if name not in fixed
    }
    return {
        "model": {**model, "module.sigmas": np.ones(9)},
        "ema": {
            "decay": 0.999,
            "num_updates": 7,
            "shadow_params": [2 * array for name, array in model.items() if name not in fixed],
        },
        "optimizer": {"state": adam, "param_groups": [{"lr": 2e-4}]},
        "step": 7,
    }


def as_tensors(content, torch):
    if isinstance(content, dict):
        return {name: as_tensors(value, torch) for name, value in content.items()}
    if isinstance(content, list):
        return [as_tensors(value, torch) for value in content]
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content

