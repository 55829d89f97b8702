"""A store of checkpoints with published files among them."""

from pathlib import Path
from typing import Any

from scoremle.published.states import Published, decode, read, train_state
from scoremle.training.checkpoints import Checkpoints, Restored

__all__ = ["PublishedCheckpoints", "files"]


def files(folder: Path) -> dict[int, Path]:
    """The published checkpoints in a folder, ``checkpoint_N`` or ``checkpoint_N.pth``, by N."""
    found = {}
    for path in sorted(folder.glob("checkpoint_*")):
        number = path.name.removeprefix("checkpoint_").removesuffix(".pth")
        if number.isdecimal() and path.is_file():
            found[int(number)] = path
    return found


class PublishedCheckpoints(Checkpoints):
    """Checkpoints as ever, and published files beside them.

    A published file is read, never altered or removed. One whose name is needed for a checkpoint
    of our own is put aside as ``checkpoint_N.published``.
    """

    def published(self) -> list[int]:
        """Numbers of those that are published files, ascending."""
        return sorted(self._files())

    def numbers(self) -> list[int]:
        return sorted({*self.own(), *self._files()})

    def path(self, number: int) -> Path:
        return self._files().get(number, super().path(number))

    def save(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        if file := self._files().get(number):
            file.rename(file.with_suffix(".published"))
        super().save(number, tree, meta)

    def restore(self, template: Any, number: int | None = None) -> Restored:
        numbers = self.numbers()
        if number is None and len(numbers) == 1 and self.published():
            # With no other to fall back on, what is wrong with the file is the message.
            (number,) = numbers
        return super().restore(template, number)

    def meta(self, number: int) -> dict[str, Any]:
        file = self._files().get(number)
        return _meta(read(file)) if file else super().meta(number)

    def _restore(self, template: Any, number: int) -> Restored:
        file = self._files().get(number)
        if not file:
            return super()._restore(template, number)
        published = decode(file)
        return Restored(train_state(published, template, file), _meta(published), number)

    def _files(self) -> dict[int, Path]:
        """By number, but for those of which there is a checkpoint of our own."""
        own = self.own()
        return {number: path for number, path in files(self.folder).items() if number not in own}


def _meta(published: Published) -> dict[str, Any]:
    return {"step": published.step, "rng": published.rng}
