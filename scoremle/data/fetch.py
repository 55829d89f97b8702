"""Files of public data sets, fetched into the cache from the places that publish them.

Each file's size and SHA-256 are those that TensorFlow Datasets publishes. A file gets its name
when all of it is there and has that hash. Until then it is NAME.part, and the next fetch goes on
from its end.
"""

import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from scoremle.data.prepared import cache_folder
from scoremle.errors import UserError, choose, first_line, needing
from scoremle.files import make_folder, writing
from scoremle.progress import progress


class Download(NamedTuple):
    """Files at one address: size and SHA-256 by name."""

    url: str
    files: dict[str, tuple[int, str]]


CIFAR = "https://www.cs.toronto.edu/~kriz"
ORIGINS = {
    "cifar10": Download(CIFAR, {
        "cifar-10-binary.tar.gz":
            (170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    }),
    "cifar100": Download(CIFAR, {
        "cifar-100-binary.tar.gz":
            (168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    }),
    "mnist": Download("https://storage.googleapis.com/cvdf-datasets/mnist", {
        "train-images-idx3-ubyte.gz":
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        "train-labels-idx1-ubyte.gz":
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3-ubyte.gz":
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1-ubyte.gz":
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    }),
    "fashion_mnist": Download("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", {
        "train-images-idx3-ubyte.gz":
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        "train-labels-idx1-ubyte.gz":
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3-ubyte.gz":
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1-ubyte.gz":
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    }),
    "svhn": Download("http://ufldl.stanford.edu/housenumbers", {
        "train_32x32.mat":
            (182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        "test_32x32.mat":
            (64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    }),
}  # fmt: skip
# Seconds without an answer, after which a server counts as silent; bytes that are written at once,
# of which those of a connection that breaks are lost.
SILENCE, CHUNK = 30, 1 << 13
ELSEWHERE = "try again, or get the file elsewhere and name it by path=PLACE"


def fetched(name: str) -> Path | None:
    """The folder of a data set that was fetched as a whole; None for another."""
    folder = _folder(name)
    whole = name in ORIGINS and all((folder / file).is_file() for file in ORIGINS[name].files)
    return folder if whole else None


def fetch(name: str) -> Path:
    """Brings those files of a data set that are not there yet, and returns their folder.

    Args:
        name: "cifar10", "cifar100", "mnist", "fashion_mnist" or "svhn".

    Raises UserError for another name, where a server can't be reached, breaks off or sends
    something else, and where another process fetches the same.
    """
    with needing("fetch", "fetch"):
        import pooch
    pooch.get_logger().setLevel("WARNING")
    origin, folder = choose(ORIGINS, name, "data set to fetch"), _folder(name.lower())
    before, total = 0, sum(size for size, _ in origin.files.values())
    with writing(folder), progress(f"fetching {name}", total) as advance:
        make_folder(folder)
        for file, (size, sha256) in origin.files.items():
            url = f"{origin.url}/{file}"

            def come(done: int, before: int = before) -> None:
                advance(before + done, f"{(before + done) / 1e6:.0f} of {total / 1e6:.0f} MB")

            resumed = partial(_download, folder / f"{file}.part", size, come)
            try:
                pooch.retrieve(url, f"sha256:{sha256}", file, folder, downloader=resumed)
            except UserError:
                raise
            except ValueError:
                raise UserError(
                    f"{url}: not the published file: its SHA-256 differs, so it was removed;"
                    f" {ELSEWHERE}"
                ) from None
            before += size
    return folder


def _folder(name: str) -> Path:
    return cache_folder() / "fetched" / name


def _download(
    part: Path, size: int, come: Callable[[int], None], url: str, output: str, _: Any
) -> None:
    """A downloader of pooch, which goes on from what an earlier one left in ``part``."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process fetches {url} to {part}") from None
        if file.tell() < size:
            _append(url, file, size, come)
        if file.tell() < size:
            raise UserError(_broken(url, file.tell(), size))
    os.replace(part, output)


def _append(url: str, file: IO[bytes], size: int, come: Callable[[int], None]) -> None:
    """Appends the bytes that the file lacks, or all where the server can't begin within it."""
    import requests
    from urllib3.exceptions import HTTPError

    # As it is stored: a server may pack on the way what the hash is of unpacked.
    headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=SILENCE) as answer:
            code, length = answer.status_code, answer.headers.get("Content-Length", "")
            start = file.tell() if code == requests.codes.partial_content else 0
            shorter = code == requests.codes.requested_range_not_satisfiable
            if shorter or (answer.ok and length.isdigit() and start + int(length) != size):
                other = f"not the published file, which has {size} bytes"
                raise UserError(f"{url}: {other}; {ELSEWHERE}")
            if not answer.ok:
                raise UserError(f"{url} can't be fetched: {code} {answer.reason}")
            file.seek(start)
            file.truncate()
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                come(file.tell())
                if file.tell() > size:
                    break
    except (requests.ConnectionError, requests.Timeout):
        what = f"no connection to {urlsplit(url).netloc}, so {url} can't be fetched"
        raise UserError(f"{what}: {ELSEWHERE}") from None
    except requests.RequestException as error:
        raise UserError(f"{url} can't be fetched: {first_line(error, named=True)}") from None
    except HTTPError:
        raise UserError(_broken(url, file.tell(), size)) from None


def _broken(url: str, done: int, size: int) -> str:
    return f"{url} broke off after {done} of {size} bytes: fetch again, which resumes there"
