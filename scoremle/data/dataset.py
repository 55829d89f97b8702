"""A data set by name, and its prepared folder: at ``data.path``, or in the cache.

In the cache, the name of a folder is a hash of everything that went into it: other files, another
place or other options are another folder, and nothing there is ever out of date.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from scoremle.data.archive import stamp
from scoremle.data.fetch import ORIGINS, fetched
from scoremle.data.prepare import prepare
from scoremle.data.prepared import Prepared, cache_folder, format_of, is_prepared
from scoremle.data.readers.base import Options, Reader
from scoremle.errors import UserError
from scoremle.terminal import say

# The options for images of any size.
ANY_SIZE = frozenset({"size", "channels", "fit"})


@dataclass(frozen=True)
class Dataset:
    """A data set, and how its images are found and read.

    Args:
        name: by which it is looked up.
        read: the reader of its files.
        needs: what ``data.path`` must be, in words.
        place: where the system installs it; "": nowhere.
        packaged: the library that it comes with; "": none.
        options: those that its reader has a use for.
        counts: the numbers of training and test images of each version.
    """

    name: str
    read: Reader
    needs: str = ""
    place: str = ""
    packaged: str = ""
    options: frozenset[str] = frozenset()
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def find(self, path: str, options: Options) -> Prepared:
        """Opens the data set at ``path``, or in the cache, where it is prepared on first use.

        Args:
            path: of its files, or of a prepared folder; "": where the system installs it, what
                was fetched, or what was prepared before.
            options: for making its images.

        Raises UserError for files that are missing, damaged or of another data set.
        """
        options = self._of_use(options)
        if path and is_prepared(Path(path)):
            return self._checked(Prepared(Path(path)), options)
        place = self.place_of(path)
        if place is None and not self.packaged:
            return self._in_cache(options)
        folder = self._cached(place, options)
        if not is_prepared(folder):
            self.prepare(place, options, folder)
            say(f"prepared {self.name}, once and for all: {folder}")
            for what, count in Prepared(folder).meta["notes"].items():
                say(f"  {what}: {count}")
        return Prepared(folder)

    def place_of(self, path: str) -> Path | None:
        """Finds its files: at ``path``, where the system installs them, or fetched; else None.

        Raises UserError for a path where nothing is, and for one of packaged data.
        """
        if path and self.packaged:
            raise UserError(
                f"path is {path!r}, but {self.name} comes with {self.packaged}; leave it empty"
            )
        if not path and not (self.place and Path(self.place).exists()):
            return fetched(self.name)
        place = Path(path or self.place).absolute()
        if not place.exists():
            raise UserError(f"no data folder or file {place}; {self._needs}")
        return place

    def prepare(self, place: Path | None, options: Options, folder: Path) -> None:
        """Makes a prepared folder.

        Args:
            place: of its files; None: they are packaged.
            options: for making its images.
            folder: to be made.

        Raises UserError for files that are missing, damaged or of another data set.
        """
        if place is None and not self.packaged:
            raise UserError(f"{self.name} has no default place; {self._needs}")
        options = self._of_use(options)
        reading = self.read(place or Path(), options)
        prepare(
            reading, folder, name=self.name, source=str(place or self.packaged), options=options,
            counts=self.counts.get(reading.version),
        )  # fmt: skip

    @property
    def _needs(self) -> str:
        by_command = f"; `scoremle data fetch {self.name}` gets it" * (self.name in ORIGINS)
        return f"it needs path=PLACE: {self.needs}{by_command}"

    def _cached(self, place: Path | None, options: Options) -> Path:
        files = [str(place.resolve()), stamp(place)] if place else []
        facts = [format_of(options), self.name, files, asdict(options)]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return cache_folder() / f"{self.name}-{key}"

    def _of_use(self, options: Options) -> Options:
        unused = ANY_SIZE - self.options
        return replace(options, **{name: getattr(Options, name) for name in unused})

    def _checked(self, prepared: Prepared, options: Options) -> Prepared:
        meta, place = prepared.meta, prepared.folder
        if meta["name"] != self.name:
            raise UserError(f"{place} holds {meta['name']}, not {self.name}: load it by that name")
        given = asdict(options)
        made = {"levels": meta["levels"], "fit": meta["options"]["fit"]}
        made |= {"size": meta["shape"][0], "channels": meta["shape"][2]}
        for name, was in made.items():
            now = given[name]
            if now and was and now != was:
                raise UserError(f"{name} is {now!r}, but {place} was prepared with {was!r}")
        return prepared

    def _in_cache(self, options: Options) -> Prepared:
        """The one with these options that was prepared before."""
        given = {name: getattr(options, name) for name in ("levels", *ANY_SIZE)}
        wanted = {"format": format_of(options), **given}.items()
        known = map(Prepared, filter(is_prepared, sorted(cache_folder().glob(f"{self.name}-*"))))
        found = [made for made in known if wanted <= (made.meta | made.meta["options"]).items()]
        if len(found) > 1:
            listing = ", ".join(str(prepared.folder) for prepared in found)
            raise UserError(
                f"{self.name} is prepared more than once; it needs path=PLACE, one of {listing}"
            )
        if not found:
            raise UserError(f"{self.name} has no default place; {self._needs}")
        return found[0]
