"""``scoremle import`` of a model of a published family: its files are copied, and sealed.

No config could train such a model on, so the working directory holds what it is; its config says
how it is evaluated, and on what.
"""

import shlex
from pathlib import Path

from ml_collections import ConfigDict

from scoremle.cli.commands.data import name_of
from scoremle.cli.commands.sample import SMALLEST_TIME
from scoremle.errors import UserError
from scoremle.experiment import defaults
from scoremle.experiment.imported import IMPORTED, Imported
from scoremle.experiment.models import load
from scoremle.experiment.workdir import Workdir
from scoremle.files import write_sealed
from scoremle.likelihood.image_model import pixels_of
from scoremle.model import ScoreModel
from scoremle.published import hub
from scoremle.published.families import FAMILIES, family_of
from scoremle.terminal import say

__all__ = ["import_model"]


def import_model(path: Path, place: Workdir, dataset: str) -> bool:
    """Makes the working directory, if a model of one of ``FAMILIES`` lies at the path.

    ``dataset``: a name or a path; "" if it is not known. Raises UserError for what can't be
    served, and for a folder that is a working directory already.
    """
    if not path.exists() and str(path).startswith(hub.PREFIX):
        path = hub.download(str(path))
    family = family_of(path)
    if family is None:
        return False
    model = load(path)
    if place.config_path.exists() or (place.begun and not place.imported):
        raise UserError(f"{place.folder} is a working directory already: choose another")
    config = _config(model, dataset)
    Imported(place.folder).write(family, path)
    write_sealed(
        place.data_path, {"name": config.data.dataset, "levels": pixels_of(model).levels}
    )
    write_sealed(place.config_path, config.to_dict())  # last: without it, it can be made anew
    _report(path, FAMILIES[family].words, model, place, config)
    return True


def _config(model: ScoreModel, dataset: str) -> ConfigDict:
    """How it is evaluated. Raises UserError for images that are not square."""
    height, width, channels = model.shape
    if height != width:
        raise UserError(f"a working directory is of square images, not of {height}x{width}")
    config, path = defaults.get_config(), Path(dataset)
    if dataset and path.exists():
        config.data.dataset, config.data.path = name_of(path), str(path.absolute())
    else:
        config.data.dataset = dataset.lower()
    config.data.image_size, config.data.num_channels = height, channels
    config.data.random_flip = False
    config.data.uniform_dequantization = True  # levels stand in the middle of their bins
    config.model.name = IMPORTED
    config.training.smallest_time = model.eps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    config.eval.dequantization = "informed" if model.decoder else "uniform"
    defaults.resolve(config)
    return config


def _report(
    path: Path, words: str, model: ScoreModel, place: Workdir, config: ConfigDict
) -> None:
    low, high = (float(model.sde.log_snr(t)) for t in (1.0, model.eps))
    say(f"{path}")
    say(f"  family      {words}")
    say(f"  model       {model}")
    say(f"  log-SNR     {high:.2f} to {low:.2f}")
    say(f"  bits/dim    {model.default_estimator.words}")
    say(f"  written to  {place.folder}")
    own, label = ["eval", str(place.folder)], ["--config.eval.label=all"]
    if not config.data.dataset:
        own, label = ["score", str(place.folder), "IMAGES"], ["--label=all"]
    own += label if model.origin.classes else []
    say(f"next: scoremle {shlex.join(own)}")
