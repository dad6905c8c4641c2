"""Two checkpoints compared, tensor by tensor, by the bytes of their rank files."""

import hashlib
import json
import struct
from pathlib import Path

# Made from the configuration when an engine is built; our converter leaves them out.
_DERIVED = ("rotary_inv_freq", "embed_positions")


def compare_checkpoints(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """How many tensors are the same, and one line for each that is not."""
    same, lines = 0, []
    for path in sorted(theirs.glob("rank*.safetensors")):
        real = _digests(path)
        mine = _digests(ours / path.name) if (ours / path.name).is_file() else {}
        for name in sorted(real.keys() | mine.keys()):
            if any(part in name for part in _DERIVED):
                continue
            if real.get(name) == mine.get(name):
                same += 1
            else:
                who = "upstream's" if name not in mine else "ours" if name not in real else ""
                found = f"only in {who}" if who else "other bytes, type or shape"
                lines.append(f"{path.name} {name}: {found}")
    return same, lines


def _digests(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            digest = hashlib.sha256()
            left = end - begin
            while left:
                block = file.read(min(left, 1 << 24))
                digest.update(block)
                left -= len(block)
            found[name] = (entry["dtype"], tuple(entry["shape"]), digest.hexdigest())
    return found
