"""A working directory that is made by hand, so that all a report of it must say is known."""

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from scoremle import data
from scoremle.experiment.config import published_config
from scoremle.files import write_json, write_npz
from scoremle.resumable import content_hash

IMAGES, STEP = 40, 1200
MEASURED = content_hash(data.load("digits").test[:IMAGES])
CHOICE = {
    "nodes": 24, "images": 8, "tried": [[12, 0.1], [24, 0.004], [48, float("inf")]],
    "solver_bias": float("nan"), "solver_bias_stderr": 0.001,
}  # fmt: skip
CORRECTED = {
    "uncorrected_mean": 2.001, "correction": -0.00133, "level_nodes": [24, 256],
    "level_images": [IMAGES, 64],
    "errors": {
        "images": 0.012, "probes": 0.00123, "draws": 0.00234, "solver": 0.0002, "all": 0.01234,
        "this_set": 0.00265, "finest_bias": 0.0001,
    },
}  # fmt: skip
# Contributions of the images to that correction, whose mean has that error.
CONTRIBUTIONS = np.resize([1.0, -1.0], IMAGES)[None] * np.sqrt(IMAGES - 1)
CONTRIBUTIONS = CORRECTED["correction"] + CORRECTED["errors"]["solver"] * CONTRIBUTIONS
VOID = {"input", "meta", "img", "use", "path", "br"}


def result(name, values, checkpoint=1, **facts):
    return {
        "metric": "bpd", "unit": "bits/dim", "kind": name, "mean": float(values.mean()),
        "stderr": float(values.std(ddof=1) / np.sqrt(values.size)), "images": IMAGES, "passes": 1,
        "noise_stderr": None,
        "estimator": "exact <for p_eps>", "split": "test", "data_hash": MEASURED, "seed": 42,
        "full_pass": False, "augmentation": "none", "eps": 0.0, "checkpoint": checkpoint,
        "step": STEP * checkpoint, "ema_hash": "4567", "dataset": "digits",
        "precision": "float32", "version": "0", **facts,
    }  # fmt: skip


def make(folder, *, shift=0.0, field=None):
    """A working directory; returns the values of its images."""
    config = published_config("digits", {"training.n_iters": 777} if field is None else field)
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / "data.json", {"name": "digits", "levels": 17})
    rng = np.random.default_rng(0)
    values = 2 + 0.2 * rng.normal(size=(1, IMAGES)) + shift
    bound = values + 0.01
    steps = np.arange(1, 41)
    rows = [
        {"step": int(s), "loss": 1 / s, "eval_loss": 1.1 / s, "grad_norm": 1.0, "eval_bpd": 2.5,
         "eval_bpd_stderr": 0.1}
        for s in steps
    ]  # fmt: skip
    rows[0]["eval_bpd"] = 30.0  # above uniform: too early
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = {"log_snr_edges": [-1, 0, 2], "bits_per_dim": [0.1, 0.2], "stderr": [0.01, 0.02]}
    write_json(folder / "eval" / "results.json", {
        "exact_test_ckpt_1": result("exact", values - 9),
        "exact_test_ckpt_2": result(
            "exact", values, 2, seed=7, mean_nfe=25.0, solver_choice=CHOICE, **CORRECTED, flags={
                "begin_ckpt": 2, "nodes": 24, "dequantization": "truncated_normal"
            },
        ),
        "bound_test_ckpt_2": result("bound", bound, 2, profile=profile),
        "exact_train_ckpt_2": result("exact", bound - 1, 2, split="train", data_hash="other"),
        "checks_test_ckpt_1": [{"words": "of before", "holds": True, "difference": 0.5,
                                "stderr": 0.1, "meaning": ""}],
        "checks_test_ckpt_2": [{"words": "exact <= bound", "holds": False, "difference": 0.5,
                                "stderr": 0.1, "meaning": "a fault"}],
    })  # fmt: skip
    square = np.where(np.arange(IMAGES) < 30, 1.0, 2.0)[None]  # of 64 dimensions, 2 is not noise
    neighbours = np.full((1, IMAGES), 0.01)
    write_npz(folder / "eval" / "exact_test_ckpt_2.npz", {
        "bpd": values, "latent_square": square, "latent_neighbours": neighbours,
        "correction": CONTRIBUTIONS * (1 + shift),
    })  # fmt: skip
    (folder / "samples").mkdir()
    for step in (9, 10, 200):
        Image.new("L", (8, 8)).save(folder / "samples" / f"step_{step}.png")
    return values[0]


class Reader(HTMLParser):
    """What a page holds: texts, tags, attributes by name, scripts. Its tags must be balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.words, self.tags, self.scripts = [], {}, [], set(), []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, []).append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
