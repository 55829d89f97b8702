"""Models that the package ships, by name: small ones, for a first look and for tests.

``make model`` trains and writes them. Each folder has a card that says what it is.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAMES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/config.json")))
WEIGHTS = "weights.safetensors"


def place_of(name: str) -> Path:
    """The folder of a model: of this path, or else of the shipped model of this name."""
    return Path(name) if Path(name).exists() else FOLDER / name
