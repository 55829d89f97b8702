"""A model that another library made, and its likelihood: a U-Net of diffusers, trained on digits.

python examples/any_model.py        # some minutes on two cores; needs torch and diffusers

It is trained as the tutorial of diffusers does it, saved as a folder, and scored by two commands
of scoremle, printed as you would type them: its own bound, which is the number that the authors of
DDPM report, and the ODE's. The model that ships with scoremle is set beside it.

Digits have 17 grey levels, pictures 256. Each pixel becomes one of the 15 or 16 levels that belong
to its own, drawn at random: so a likelihood on 17 levels plus log2 of how many those are, is one
on 256.
"""

import argparse
import csv
from pathlib import Path

import diffusers
import numpy as np
import torch

import scoremle
from scoremle.cli import main as cli
from scoremle.evaluation.tables import table

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--folder", type=Path, default=Path("runs/any_model"), help="for all files")
parser.add_argument("--quick", action="store_true", help="hardly trained, and few images")
flags = parser.parse_args()
steps, images = (60, 8) if flags.quick else (2500, 100)
flags.folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
rng = np.random.default_rng(0)

# 1. Data: where each level begins among the 256, and pictures of them.
data = scoremle.data.load("digits")
train, test, levels = data.train, data.test, data.levels
edges = -(-256 * np.arange(levels + 1) // levels)
counts = np.diff(edges)


def as_pictures(digits):
    return (edges[digits] + rng.integers(counts[digits])).astype(np.uint8)


# 2. A network and a scheduler, trained as the tutorial does.
network = diffusers.UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
    block_out_channels=(32, 64), norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for i in range(steps):
    pictures = as_pictures(train[rng.integers(len(train), size=64)])
    clean = torch.from_numpy(np.moveaxis(pictures, -1, 1).astype(np.float32) / 127.5 - 1)
    noise = torch.randn_like(clean)
    when = torch.randint(scheduler.config.num_train_timesteps, (len(clean),))
    predicted = network(scheduler.add_noise(clean, noise, when), when).sample
    loss = torch.nn.functional.mse_loss(predicted, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
    if i % (steps // 6) == 0:
        print(f"step {i}  loss {loss.item():.3f}", flush=True)
model = flags.folder / "ddpm-digits"
diffusers.DDPMPipeline(network, scheduler).save_pretrained(model)

# 3. The commands, on the test images: as pictures, and for the other model as they are.
digits = test[:images]
np.save(flags.folder / "pictures.npy", as_pictures(digits))
np.save(flags.folder / "digits.npy", digits)


def score(name, model, images, *options):
    """The bits/dim of each image, and the mean's error over images."""
    out = flags.folder / f"{name}.csv"
    arguments = ["score", str(model), str(flags.folder / images), f"--out={out}", "--force"]
    arguments += options
    print("\n$ scoremle " + " ".join(arguments), flush=True)
    if code := cli.main(arguments):
        raise SystemExit(code)
    with out.open(newline="") as file:
        return np.array([float(row["bpd"]) for row in csv.DictReader(file)])


bound = score("steps", model, "pictures.npy", "--estimator=steps", "--repeats=1")
ode = score("ode", model, "pictures.npy")
shipped = score("shipped", "digits", "digits.npy")
shipped += np.log2(counts)[digits].mean(axis=(1, 2, 3))

# 4. Side by side.
rows = {
    "uniform, log2 256": np.full(len(digits), 8.0),
    "U-Net of diffusers, its own bound of 1000 steps": bound,
    "U-Net of diffusers, ODE bound with informed decoder": ode,
    "the model that ships, exact by the ODE [1]": shipped,
}
cells = [
    (name, f"{bits.mean():.3f}", f"{bits.std(ddof=1) / len(bits) ** 0.5:.3f}")
    for name, bits in rows.items()
]
print(f"\nbits/dim of {len(digits)} test images on 256 levels, less is better\n")
print(table(("model", "bits/dim", "std. error"), cells))
within = np.log2(counts)[digits].mean()
print(f"\n[1] on its {levels} levels, and {within:.3f} for which of 256 within each")
