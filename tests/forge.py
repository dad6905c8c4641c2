"""The command `trtforge` on a running stack, and what it builds: tiny engines.

Compiling cold takes the better part of a minute, so tests share the shapes in `PARTS`, and with
them the timing cache of the session's first build; each has weights of its own.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import SecretStr

from trtforge.settings import Settings, prefect_environment
from trtforge.stack import StackInfo
from trtforge.stack import state as stack_state
from trtforge.store import Store
from trtforge.store.client import S3Client

PROMPT = "The capital of Japan is"
# Shapes small enough for the tiny model, long enough for the prompts and the chat template.
PARTS: dict[str, Any] = {
    "engine": {
        "max_batch_size": 1,
        "max_input_len": 48,
        "max_seq_len": 96,
        "max_num_tokens": 96,
        "options": {"device": "cpu"},
    },
    "benchmark": {"workload": {"input_tokens": 16, "output_tokens": 8}, "repeats": 1},
    "gates": {
        "prompts": [PROMPT, "What floats on water?"],
        "new_tokens": 8,
        "text_tokens": 16,
        # Tests build many engines of one model, and the machine has other things to do meanwhile.
        "performance": {"mode": "off"},
    },
    "publish": {"prompt": PROMPT, "max_output_len": 12},
}


@dataclass(frozen=True)
class Forge:
    """One home with a running stack. `store` has a cache of its own, away from the home's."""

    home: Path
    stack: StackInfo
    client: S3Client
    store: Store

    @property
    def work(self) -> Path:
        """Where the home's builds have their scratch space."""
        return self.home / "work"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TRTFORGE_HOME": str(self.home)}

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """`trtforge <arguments>`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "trtforge.cli", *map(str, arguments)],
            env=self.environment(),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def json(self, *arguments: str | Path) -> Any:
        """What `trtforge <arguments> --json` prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def listing(self) -> dict[str, str]:
        """Every key in the bucket, with its ETag."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.stack.s3_bucket)
        return {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", [])}


@dataclass(frozen=True)
class Build:
    """A finished build: the spec, the file it was read from, and what `trtforge build` told."""

    model: Path
    spec: Mapping[str, Any]
    spec_file: Path
    result: Mapping[str, Any]


def prefect_http(stack: StackInfo) -> httpx.Client:
    """A client of the stack's Prefect API: paths below `/api`, logged in, with a CSRF token."""
    state = stack_state.read(stack.home)
    assert state is not None
    assert state.prefect_auth is not None
    user, _, password = state.prefect_auth.partition(":")
    auth, name = (user, password), uuid.uuid4().hex
    answer = httpx.get(
        f"{stack.prefect_api_url}/csrf-token", params={"client": name}, auth=auth, timeout=30
    )
    token = answer.raise_for_status().json()["token"]
    return httpx.Client(
        base_url=f"{stack.prefect_api_url}/",
        auth=auth,
        headers={"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": token},
        timeout=30,
    )


def prefect_client_environment(stack: StackInfo) -> dict[str, str]:
    """The environment of a process that talks to the stack's Prefect server and S3."""
    state = stack_state.read(stack.home)
    assert state is not None
    auth = None if state.prefect_auth is None else SecretStr(state.prefect_auth)
    settings = Settings(home=stack.home, prefect_api_url=stack.prefect_api_url, prefect_auth=auth)
    return {**os.environ, **prefect_environment(settings), "TRTFORGE_HOME": str(stack.home)}


def write_spec(path: Path, model: Path, /, **parts: Mapping[str, Any]) -> Path:
    """Write a spec for a tiny model; `parts` add to or replace what `PARTS` says."""
    path.write_text(yaml.safe_dump(tiny_spec(model, **parts)))
    return path


def tiny_spec(model: Path, /, **parts: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"model": {"source": str(model)}, **PARTS}
    return {**spec, **{name: {**spec.get(name, {}), **part} for name, part in parts.items()}}
