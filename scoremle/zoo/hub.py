"""Models on the Hugging Face hub, by ``hf:OWNER/NAME[@REVISION]``; needs the extra ``hub``.

Configs come first, which are small. Where they declare what can't be served, no weights are
fetched. No file is fetched that is not read, nor one larger than such a file may be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoremle.errors import UserError, first_line, needing
from scoremle.zoo import diffusers
from scoremle.zoo.families import HUB

__all__ = ["download"]

LARGEST_CONFIG, LARGEST_WEIGHTS = 1 << 20, 8 << 30


def download(place: str) -> Path:
    """The folder of the files in the hub's cache. Raises UserError if they can't be had or served.

    Args:
        place: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION``.
    """
    folder = _fetched(place, diffusers.CONFIGS, LARGEST_CONFIG)
    diffusers.check_configs(folder)
    # All of one commit, whatever is written to the hub meanwhile.
    commit = f"{place.partition('@')[0]}@{folder.name}"
    wanted = diffusers.weights_of(folder)
    for name in wanted:
        _fetched(commit, [name], LARGEST_WEIGHTS)
        if (folder / name).is_file():
            return folder
    raise UserError(f"{place} has no {' or '.join(wanted)}")


def _fetched(place: str, names: Sequence[str], largest: int) -> Path:
    """The folder with these of the files there are; without a network, as the cache has it."""
    with needing(place, "hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import DryRunError
    model, _, revision = place.removeprefix(HUB).partition("@")
    request: dict[str, Any] = {
        "repo_id": model, "revision": revision or None, "allow_patterns": [*names],
    }  # fmt: skip
    try:
        try:
            planned = snapshot_download(**request, dry_run=True)
        except DryRunError:
            return Path(snapshot_download(**request, local_files_only=True))
        for file in planned:
            if file.file_size is None or file.file_size > largest:
                raise UserError(
                    f"{place} has a {file.filename} of {file.file_size} bytes, and at most"
                    f" {largest} are fetched: download it by hand, and give its folder"
                )
        return Path(snapshot_download(**request))
    except UserError:
        raise
    except Exception as error:
        # No network, no such model, an invalid name: every kind of exception.
        words = first_line(error, named=True)
        raise UserError(f"{place} can't be had from the hub: {words}") from error
