"""A builder as a process of its own: claims a stage, makes it, records it. Run by the tests.

Its one argument is JSON: the service and bucket, `home` (cache directory), `stage_key`, `made`
(a file that gets a line each time the stage is made), `works_s`, `ttl_s`, and `elsewhere`: whether
it shall pass for a process of another machine. It prints `claimed`, `waiting` (once), and in the
end `made` or `found`.
"""

import json
import sys
import time
from pathlib import Path

from pydantic import SecretStr

from trtforge.store import StageResult, Store, lease_record
from trtforge.store.client import make_client
from trtforge.store.leases import Leases


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["elsewhere"]:
        vars(lease_record)["_machine"] = lambda: "another boot"
    client = make_client(
        endpoint_url=asked["endpoint_url"],
        access_key_id=asked["access_key_id"],
        secret_access_key=SecretStr(asked["secret_access_key"]),
    )
    store = Store(client, asked["bucket"], Path(asked["home"]))
    leases = Leases(store.bucket, ttl_s=asked["ttl_s"], poll_s=(0.05, 0.2))
    key = asked["stage_key"]
    said: set[str] = set()

    def say(word: str) -> None:
        if word not in said:
            said.add(word)
            print(word, flush=True)

    def find() -> StageResult | None:
        return store.get_stage("compile", key)

    with leases.claimed("compile", key, find, on_wait=lambda _: say("waiting")) as found:
        if found:
            say("found")
            return
        with Path(asked["made"]).open("a") as made:
            made.write("once\n")
        say("claimed")
        time.sleep(asked["works_s"])
        store.put_stage(StageResult(stage="compile", key=key, inputs={}, outputs=(), seconds=1))
        say("made")


if __name__ == "__main__":
    main()
