"""A stand-in for TensorRT: timing caches as sets of names, which can be read and combined."""

import os
from contextlib import contextmanager

STANDIN = True
_VERSIONS = {"1.2": "10.14.1.48", "1.1": "10.13.3.9", "1.0": "10.11.0.33", "0.1": "10.7.0.23"}
__version__ = _VERSIONS.get(os.environ.get("TRTFORGE_STANDIN_VERSION", "1.2.1")[:3], "10.14.1.48")
_MAGIC = b"trtforge stand-in timing cache "


class Logger:
    WARNING = 2

    def __init__(self, level=WARNING):
        self.level = level


class TimingCache:
    def __init__(self, entries=()):
        self.entries = set(entries)

    def combine(self, input_cache, ignore_mismatch):
        del ignore_mismatch
        self.entries |= input_cache.entries
        return True

    @contextmanager
    def serialize(self):
        head = _MAGIC + __version__.encode() + b"\n"
        yield memoryview(head + "\n".join(sorted(self.entries)).encode())


class BuilderConfig:
    def __init__(self):
        self._cache = None

    def create_timing_cache(self, serialized_timing_cache):
        data = bytes(serialized_timing_cache)
        if not data:
            return TimingCache()
        head, _, entries = data.partition(b"\n")
        if head != _MAGIC + __version__.encode():
            return None
        return TimingCache(filter(None, entries.decode().split("\n")))

    def set_timing_cache(self, cache, ignore_mismatch):
        del ignore_mismatch
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_builder_config(self):
        return BuilderConfig()


def entries_of(data):
    """For tests: what a timing cache of the stand-in holds."""
    cache = BuilderConfig().create_timing_cache(data)
    return None if cache is None else sorted(cache.entries)


__all__ = ["STANDIN", "Builder", "BuilderConfig", "Logger", "TimingCache", "entries_of"]
