"""`model.cache` of the aoti backend: compiled graphs, each under the key of all that decides it.

TensorRT's `model.cache` spares the next build the timing of tactics; this one spares it the
compiler. The file is a ZIP archive without compression:

    index.json           {"format": 1, "entries": {key: {"graph", "compile_s", "files"}}},
                         files being {name: sha256}
    <key>/<file name>    what AOTInductor generated for that graph

A file that cannot be read, or an entry whose bytes do not match, counts as absent: a bad cache
costs a cold build, never a wrong one.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORMAT = 1
_MAX_ENTRIES = 64
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Entry:
    """One compiled graph: generated files (basename → bytes) and the seconds they took."""

    graph: str
    compile_s: float
    files: dict[str, bytes]


class CompileCache:
    """Compiled graphs by key; newest last."""

    def __init__(self, entries: "dict[str, Entry] | None" = None) -> None:
        self._entries = entries or {}

    @classmethod
    def load(cls, path: Path) -> "tuple[CompileCache, str]":
        """Read a cache file; the second value says what was wrong with it, if anything was."""
        try:
            with zipfile.ZipFile(path) as archive:
                return cls._read(archive)
        except FileNotFoundError:
            return cls(), ""
        except Exception as error:  # zipfile raises a dozen kinds for damaged archives
            return cls(), f"unreadable cache, using a fresh one ({type(error).__name__}: {error})"

    @classmethod
    def _read(cls, archive: zipfile.ZipFile) -> "tuple[CompileCache, str]":
        index = json.loads(archive.read("index.json"))
        if index["format"] != _FORMAT:
            return cls(), f"cache of format {index['format']}, using a fresh one"
        entries: dict[str, Entry] = {}
        complaint = ""
        for key, described in index["entries"].items():
            try:
                files = {name: archive.read(f"{key}/{name}") for name in described["files"]}
                whole = {n: _sha256(data) for n, data in files.items()} == described["files"]
            except Exception:  # see load
                whole = False
            if whole:
                entries[key] = Entry(described["graph"], described["compile_s"], files)
            else:
                complaint = f"entry {key[:12]} does not match its digest and was dropped"
        return cls(entries), complaint

    def get(self, key: str) -> "Entry | None":
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > _MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def __len__(self) -> int:
        return len(self._entries)

    def save(self, path: Path) -> None:
        """Write the cache by rename; the same entries give the same bytes."""
        index: dict[str, Any] = {"format": _FORMAT, "entries": {}}
        partial = path.with_name(path.name + ".partial")
        with zipfile.ZipFile(partial, "w") as archive:
            for key, entry in self._entries.items():
                described = {name: _sha256(data) for name, data in entry.files.items()}
                index["entries"][key] = {
                    "graph": entry.graph,
                    "compile_s": entry.compile_s,
                    "files": described,
                }
                for name, data in entry.files.items():
                    archive.writestr(zipfile.ZipInfo(f"{key}/{name}", _FIXED_TIME), data)
            archive.writestr(zipfile.ZipInfo("index.json", _FIXED_TIME), json.dumps(index))
        partial.rename(path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
