"""Choice of the checkpoints to evaluate: by their numbers, the newest, or those to come."""

import time
from collections.abc import Iterable

from scoremle.errors import UserError
from scoremle.terminal import say
from scoremle.training.checkpoints import Checkpoints

# Seconds between two checks whether there is a new checkpoint.
WAIT_SECONDS = 10.0


def chosen_checkpoints(
    store: Checkpoints, begin: int | None, end: int | None, *, wait: bool = False
) -> Iterable[int] | list[None]:
    """The numbers from ``begin`` to ``end`` that are there; None is the newest.

    Without an end it is the newest; without a beginning, the end alone is meant. With ``wait``
    they are all the numbers, each given when it is there.
    """
    if wait and end is not None:
        first = end if begin is None else begin
        return (_await(store, number) for number in range(first, end + 1))
    there = store.numbers()
    if not there:
        raise UserError(f"no checkpoint in {store.folder}: train first")
    if begin is None and end is None:
        return [None]
    last = there[-1] if end is None else end
    first = last if begin is None else begin
    if chosen := [number for number in there if first <= number <= last]:
        return chosen
    wanted = first if None in (begin, end) else f"{first} to {last}"
    raise UserError(
        f"no checkpoint {wanted} in {store.folder}, only {', '.join(map(str, there))}; "
        "set --config.eval.begin_ckpt and end_ckpt, or neither for the newest"
    )


def _await(store: Checkpoints, number: int) -> int:
    if number not in store.numbers():
        say(f"waiting for {store.path(number)}")
    while number not in store.numbers():
        time.sleep(WAIT_SECONDS)
    return number
