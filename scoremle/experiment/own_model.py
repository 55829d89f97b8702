"""A model by ``FILE.py:function``: a user's own function, which returns a ScoreModel."""

from pathlib import Path

from scoremle.errors import UserError
from scoremle.experiment.own_code import imports_beside, mistakes, run_file
from scoremle.model import ScoreModel

__all__ = ["is_own", "own_model"]


def is_own(place: str) -> bool:
    """Does this name a function of a file?"""
    return ".py:" in place


def own_model(place: str) -> ScoreModel:
    """The model that the function returns. The file is Python, and is run.

    Raises UserError if there is no such file or function, for a mistake in it, and if it returns
    something else.
    """
    name, _, function = place.rpartition(":")
    path = Path(name)
    with mistakes(path), imports_beside(path):
        module = run_file(path)
        if not hasattr(module, function):
            raise UserError(f"{path} has no function {function}")
        model = getattr(module, function)()
    if not isinstance(model, ScoreModel):
        raise UserError(f"{place} must return a ScoreModel, not a {type(model).__name__}")
    return model
