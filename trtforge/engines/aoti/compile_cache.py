"""`model.cache` of the aoti backend: compiled graphs, each under the key of all that decides it.

TensorRT's `model.cache` spares the next build the timing of tactics; this one spares it the
compiler. The file is a ZIP archive without compression:

    index.json           {"format": 1, "toolchain": the key of the toolchain that compiled,
                          "entries": {key: {"graph", "compile_s", "files"}}}, newest last,
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
    """Compiled graphs by key; newest last.

    Args:
        toolchain: Key of the toolchain that compiled them; None when it is not known.
    """

    def __init__(
        self, entries: "dict[str, Entry] | None" = None, toolchain: "str | None" = None
    ) -> None:
        self._entries = entries or {}
        self.toolchain = toolchain

    @classmethod
    def load(cls, path: Path, toolchain: "str | None" = None) -> "tuple[CompileCache, str]":
        """Read a cache file; the second value says what was wrong with it, if anything was.

        Args:
            toolchain: Key of the toolchain that is to use it; what another one compiled counts
                as wrong.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                cache, complaint = cls._read(archive)
        except FileNotFoundError:
            return cls(toolchain=toolchain), ""
        except Exception as error:  # zipfile raises a dozen kinds for damaged archives
            problem = f"unreadable cache, using a fresh one ({type(error).__name__}: {error})"
            return cls(toolchain=toolchain), problem
        if toolchain and cache.toolchain not in (None, toolchain):
            return cls(toolchain=toolchain), "cache of another toolchain, using a fresh one"
        cache.toolchain = toolchain or cache.toolchain
        return cache, complaint

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
        return cls(entries, index.get("toolchain")), complaint

    def get(self, key: str) -> "Entry | None":
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        self._entries.pop(key, None)
        self._entries[key] = entry
        while len(self._entries) > _MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]

    def merged(self, other: "CompileCache") -> "CompileCache":
        """The entries of both, in order of their age in their own cache; of one key, `self`'s.

        Where both together have too many, the oldest of each are dropped.
        """
        ages: dict[str, tuple[int, int]] = {}
        for rank, cache in ((1, other), (0, self)):
            for age, key in enumerate(reversed(cache._entries)):
                ages[key] = min(ages.get(key, (age, rank)), (age, rank))
        both = {**other._entries, **self._entries}
        merged = CompileCache(toolchain=self.toolchain or other.toolchain)
        for key in sorted(ages, key=ages.__getitem__, reverse=True):
            merged.put(key, both[key])
        return merged

    def __len__(self) -> int:
        return len(self._entries)

    def save(self, path: Path) -> None:
        """Write the cache by rename; the same entries give the same bytes."""
        index: dict[str, Any] = {"format": _FORMAT, "entries": {}}
        if self.toolchain:
            index["toolchain"] = self.toolchain
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


class CompileCacheFormat:
    """Counts and merges cache files; see `trtforge.engines.base.CacheFormat`."""

    def count(self, path: Path) -> "int | None":
        try:
            with zipfile.ZipFile(path) as archive:
                return len(json.loads(archive.read("index.json"))["entries"])
        except Exception:  # see CompileCache.load
            return None

    def merge(self, mine: Path, theirs: Path, merged: Path) -> str:
        ours, complaint = CompileCache.load(mine)
        others, other_complaint = CompileCache.load(theirs, ours.toolchain)
        ours.merged(others).save(merged)
        return "; ".join(filter(None, (complaint, other_complaint)))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
