"""Where the Hub token of a worker comes from: HF_TOKEN, or else the Secret block `hf-token`."""

import subprocess
import sys

from forge import prefect_client_environment

from trtforge.stack import StackInfo

_SCRIPT = """
import os
from prefect.blocks.system import Secret
from tasks.workshop import task_workshop

print(task_workshop(force=False).hub_token)
Secret(value="hf_from_the_block").save("hf-token")
try:
    shop = task_workshop(force=False)
    print(shop.hub_token.get_secret_value())
finally:
    # Other tests share the server, and have tokens of their own or none.
    Secret.delete("hf-token")
os.environ["HF_TOKEN"] = "hf_from_the_environment"
print(task_workshop(force=False).hub_token.get_secret_value())
print("shown" if "hf_from" in repr(shop) else "hidden")
"""


def test_the_token_is_found_and_never_shown(stack: StackInfo) -> None:
    environment = prefect_client_environment(stack)
    environment.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == [
        "None",
        "hf_from_the_block",
        "hf_from_the_environment",
        "hidden",
    ], done.stderr
