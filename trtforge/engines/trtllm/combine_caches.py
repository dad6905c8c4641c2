"""Combine TensorRT timing caches: `python -m … into.cache other.cache…`, in the toolchain.

`ITimingCache.combine` takes entries of the very same TensorRT; of those that both have, the first
file's stay. The file is replaced by rename.
"""

import importlib
import sys
from pathlib import Path


def main(into: Path, others: "list[Path]") -> None:
    tensorrt = importlib.import_module("tensorrt")
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.WARNING))
    config = builder.create_builder_config()
    cache = config.create_timing_cache(into.read_bytes())
    if cache is None:
        sys.exit(f"TensorRT cannot read {into}")
    for other in others:
        loaded = config.create_timing_cache(other.read_bytes())
        if loaded is None or not cache.combine(loaded, False):
            sys.exit(f"TensorRT does not combine {other} with {into}")
    partial = into.with_name(f"{into.name}.partial")
    with cache.serialize() as data:
        partial.write_bytes(bytes(data))
    partial.replace(into)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
