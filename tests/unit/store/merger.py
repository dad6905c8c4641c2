"""A builder that shares what it compiled, as a process of its own. Run by the tests.

Its one argument is JSON: the service and bucket, `home`, `toolchain`, `graphs`. It says `ready`,
waits for a line, and shares its graphs one after the other, each time from what it had.
"""

import json
import sys
from pathlib import Path

from pydantic import SecretStr

from trtforge.engines.aoti.compile_cache import CompileCache, CompileCacheFormat, Entry
from trtforge.store import Store
from trtforge.store.client import make_client


def main() -> None:
    asked = json.loads(sys.argv[1])
    client = make_client(
        endpoint_url=asked["endpoint_url"],
        access_key_id=asked["access_key_id"],
        secret_access_key=SecretStr(asked["secret_access_key"]),
    )
    home = Path(asked["home"])
    home.mkdir()
    store = Store(client, asked["bucket"], home / "cache")
    store.probe_conditional_writes()
    print("ready", flush=True)
    sys.stdin.readline()
    for graph in asked["graphs"]:
        file, started_from = home / f"{graph}.in", None
        cache = CompileCache()
        if found := store.timing.get(asked["toolchain"], file):
            started_from = found.sha256
            cache, complaint = CompileCache.load(file)
            assert complaint == ""
        cache.put(graph, Entry(graph, 1.0, {"a.so": graph.encode() * 1000}))
        cache.save(home / f"{graph}.out")
        store.timing.put(
            asked["toolchain"],
            home / f"{graph}.out",
            started_from=started_from,
            cache_format=CompileCacheFormat(),
        )


if __name__ == "__main__":
    main()
