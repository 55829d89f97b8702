"""Models on the Hugging Face hub, by ``hf:OWNER/NAME[@REVISION]``; needs the extra ``hub``."""

from pathlib import Path

from scoremle.errors import UserError

__all__ = ["PREFIX", "download"]

PREFIX = "hf:"
WEIGHTS = "*diffusion_pytorch_model"
# What a folder of diffusers is read from; weights in the older form, where there are no others.
FILES, OLDER = ("*.json", "*/*.json", f"{WEIGHTS}.safetensors"), f"{WEIGHTS}.bin"


def download(place: str) -> Path:
    """The folder of the files in the hub's cache. Raises UserError if they can't be had."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{place} needs the extra hub: pip install 'scoremle[hub]'") from None
    name, _, revision = place.removeprefix(PREFIX).partition("@")

    def get(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*patterns]))

    try:
        folder = get(*FILES)
        return folder if any(folder.rglob(f"{WEIGHTS}.safetensors")) else get(*FILES, OLDER)
    except Exception as error:
        # No network, no such model, a name that is none: every kind of exception.
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{place} can't be had from the hub: {text}") from error
