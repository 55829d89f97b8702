"""A store of checkpoints with published files among them."""

from pathlib import Path
from typing import Any

from scoremle.files import inside, listed
from scoremle.published.states import Published, decode, read, train_state
from scoremle.training.checkpoints import Checkpoints, Restored

__all__ = ["PublishedCheckpoints"]

ASIDE = ".published"


def checkpoint_files(folder: Path) -> dict[int, Path]:
    """The published checkpoints in a folder, ``checkpoint_N`` or ``checkpoint_N.pth``, by N.

    Args:
        folder: to be searched.

    Raises UserError for a folder that can't be read.
    """
    found = {}
    for path in listed(folder):
        if not path.name.startswith("checkpoint_"):
            continue
        # One that was put aside is there no more, unless what replaces it has not come yet.
        replaced = path.suffix == ASIDE and path.with_suffix(".new").is_dir()
        name = path.name.removesuffix(".pth").removesuffix(ASIDE if replaced else "")
        number = name.removeprefix("checkpoint_")
        if number.isdecimal() and path.is_file():
            found[int(number)] = inside(folder, path.name)
    return found


class PublishedCheckpoints(Checkpoints):
    """Checkpoints of our own in a folder, with files in the published format beside them.

    A published file is read, never altered or removed. One whose name is needed for a checkpoint
    of our own is put aside as ``checkpoint_N.published``.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest of our own; None: all.
    """

    def published(self) -> list[int]:
        """Numbers of those that are published files, ascending."""
        return sorted(self._files())

    def numbers(self) -> list[int]:
        return sorted({*self.own(), *self._files()})

    def path(self, number: int) -> Path:
        return self._files().get(number, super().path(number))

    def restore(self, template: Any, number: int | None = None) -> Restored:
        numbers = self.numbers()
        if number is None and len(numbers) == 1 and self.published():
            # With no other to fall back on, what is wrong with the file is the message.
            (number,) = numbers
        return super().restore(template, number)

    def meta(self, number: int) -> dict[str, Any]:
        file = self._files().get(number)
        return _meta(read(file)) if file else super().meta(number)

    def verify(self, number: int) -> None:
        """Verifies a checkpoint; a published file, which has no checksum, is only read whole."""
        if file := self._files().get(number):
            read(file)
        else:
            super().verify(number)

    def _restore(self, template: Any, number: int) -> Restored:
        file = self._files().get(number)
        if not file:
            return super()._restore(template, number)
        published = decode(file)
        return Restored(train_state(published, template, file), _meta(published), number)

    def _make_way(self, place: Path) -> None:
        super()._make_way(place)
        if place.is_file():
            place.rename(place.with_suffix(ASIDE))

    def _sweep(self) -> None:
        for number, file in self._files().items():
            if file.suffix == ASIDE:
                file.rename(self._place(number))
        super()._sweep()

    def _files(self) -> dict[int, Path]:
        """Published files by number, without the numbers of our own checkpoints."""
        own = self.own()
        found = checkpoint_files(self.folder)
        return {number: path for number, path in found.items() if number not in own}


def _meta(published: Published) -> dict[str, Any]:
    return {"step": published.step, "rng": published.rng}
