"""Room for two plans in front of a header's other keys: one half has the plan, the other is free for the next.

Bytes of the file::

    16  number of keys                                                      \\
    24  key kvtuner.reserved, a list of uint64                               } what `switch` writes at once
    56  length of this list: 0, or the first half in units of 8 bytes       /
    64  first half:  keys of the plan, kvtuner.padding, kvtuner.spare, a list that reaches to the end of the second
        second half: likewise, to its own end
        the model's own keys

A reader comes upon the first half where the length is 0, and takes it for values of the list where it is not. So the
next plan is written to the half in which no reader sees keys, and one write of 48 bytes, all in the first sector of the
file, puts it in force: up to then the file has the plan before, from then on the new one, and nothing is ever half
done. That needs no journal beside the file, and readers that know nothing of all this are safe, too. The plan before
stays where it was until the next one, for a reader that is in the middle of it; commands of ours keep each other from
the file that long.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

from kvtuner_gguf.gguffile.fields import string_field, uint64_list_start
from kvtuner_gguf.gguffile.keys import Keys
from kvtuner_gguf.gguffile.reader import Field, GgufHeader
from kvtuner_gguf.plan.cachetypes import CACHE_TYPES
from kvtuner_gguf.plan.shape import ModelShape

COUNT_START = 16
HALVES_START = 64
UNIT = 8  # bytes of a value of the lists
N_KEYS = 3
SPARE_BYTES = len(uint64_list_start(Keys.SPARE, 0))
TAIL_BYTES = len(string_field(Keys.PADDING, "")) + UNIT - 1 + SPARE_BYTES
# names of all keys of a plan, its numbers and short texts
MAX_OTHER_BYTES = 4096
LENGTH_BYTES, FLOAT_BYTES = 8, 4
N_NAMES, N_CHANNEL_LISTS, N_SPREADS = 2, 2, 4  # in a layer: types, lists of a number per channel of K, key spreads


@dataclass(frozen=True)
class Room:
    """The two halves, from byte ``start`` of the file to byte ``end``; the plan is in the second where ``second``."""

    start: int
    end: int
    second: bool

    @property
    def middle(self) -> int:
        return self.start + (self.end - self.start) // (2 * UNIT) * UNIT

    @property
    def used_end(self) -> int:
        """The end of the half in which the plan is."""
        return self.end if self.second else self.middle

    def fits(self, fields: Sequence[bytes]) -> bool:
        """Whether either half has room for these encoded fields."""
        return sum(map(len, fields)) + TAIL_BYTES <= self.middle - self.start


def room_bytes(fields: Sequence[bytes], shape: ModelShape) -> int:
    """Bytes of two halves that both hold ``fields``, and any usual plan of a model of this shape."""
    names = N_NAMES * (LENGTH_BYTES + max(map(len, CACHE_TYPES)))
    floats = FLOAT_BYTES * (N_CHANNEL_LISTS * sum(shape.sizes_k) + N_SPREADS * shape.n_layer)
    half = max(MAX_OTHER_BYTES + names * shape.n_layer + floats, sum(map(len, fields))) + TAIL_BYTES
    return 2 * -(-half // UNIT) * UNIT


def room_fields(fields: Sequence[bytes], n_bytes: int) -> bytes:
    """The key in front, and ``n_bytes`` of two halves with ``fields`` in the first: `N_KEYS` keys more than those."""
    used = _up_to_spare(fields, n_bytes)
    return uint64_list_start(Keys.RESERVED, 0) + used + bytes(n_bytes - len(used))


def _up_to_spare(fields: Sequence[bytes], n_bytes: int) -> bytes:
    """``fields`` and what declares the rest of ``n_bytes`` to be values of a list."""
    joined = b"".join(fields)
    rest = n_bytes - len(joined) - len(string_field(Keys.PADDING, "")) - SPARE_BYTES
    padding = string_field(Keys.PADDING, " " * (rest % UNIT))
    return joined + padding + uint64_list_start(Keys.SPARE, rest // UNIT)


def room_of(header: GgufHeader) -> Room | None:
    """The room that a header has; None where it has none, or keys of ours that do not lie as `switch` leaves them."""
    keys = (Keys.RESERVED, Keys.PADDING, Keys.SPARE)
    reserved, padding, spare = (header.fields.get(key) for key in keys)
    if reserved is None or padding is None or spare is None or not (_is_list(reserved) and _is_list(spare)):
        return None
    room = Room(HALVES_START, spare.end, second=reserved.end != HALVES_START)
    if (
        reserved.start != COUNT_START + LENGTH_BYTES
        or reserved.end != (room.middle if room.second else room.start)
        or padding.end != spare.start
        or spare.start + SPARE_BYTES > room.used_end
    ):
        return None
    is_apart = all(Keys.is_ours(field.key) == (field.start < room.end) for field in header.fields.values())
    return room if is_apart else None


def _is_list(field: Field) -> bool:
    return field.element == GGUFValueType.UINT64


def switch(fd: int, room: Room, fields: Sequence[bytes], n_others: int) -> None:
    """Put ``fields`` into the free half of the open file, and then in force, in place of the plan before.

    ``n_others``: keys of the model's own. Each step is on the disk before the next begins: a kill or a loss of
    power, at any moment, leaves the plan before or this one. Raises `OSError`.
    """
    start = room.start if room.second else room.middle
    _write(fd, _up_to_spare(fields, room.end - start), start)
    os.fsync(fd)
    count = struct.pack("<Q", n_others + len(fields) + N_KEYS)
    _write(fd, count + uint64_list_start(Keys.RESERVED, (start - room.start) // UNIT), COUNT_START)
    os.fsync(fd)


def _write(fd: int, data: bytes, start: int) -> None:
    while data:
        n_written = os.pwrite(fd, data, start)
        data, start = data[n_written:], start + n_written
