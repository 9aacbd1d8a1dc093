"""The local file of a run of Weights & Biases: a log of LevelDB's form, whose records are protobuf.

github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB, in them pieces of records,
each with a checksum (4 bytes), a length (2), and whether it is all of a record, its first, a middle
or its last piece (1). wandb begins the file with 7 bytes of its own.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD, OWN = 32 * 1024, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(path: Path) -> Iterator[dict[str, Any]]:
    """{name: value} of every logged row. A record that is cut short ends the file."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    for data in _records(path.read_bytes()):
        read = record()
        read.ParseFromString(data)
        if read.WhichOneof("record_type") == "history":
            yield {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in read.history.item
            }


def _records(data: bytes) -> Iterator[bytes]:
    place, parts = OWN, b""
    while place + HEAD <= len(data):
        rest = BLOCK - place % BLOCK
        if rest < HEAD:  # the end of a block is filled with zeros
            place += rest
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        piece = data[place + HEAD : place + HEAD + length]
        if len(piece) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts
        place += HEAD + length
