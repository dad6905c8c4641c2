"""Ask a published engine something: fetch it (through the cache), load it, generate."""

import tempfile
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.machine import local_machine
from trtforge.errors import InputError
from trtforge.progress import ignore
from trtforge.spec import EngineSpec
from trtforge.stages.compile import probe_backend
from trtforge.stages.publish import generate
from trtforge.stages.stage import Workshop
from trtforge.store import Manifest
from trtforge.store.compatibility import compatibility
from trtforge.tokenizer import open_tokenizer


class NoTokenizerError(InputError):
    """The engine was published without a tokenizer: it can be asked in token ids only."""


class WrongMachineError(InputError):
    """The engine is not valid here; the message names the field that differs."""


def ask(
    shop: Workshop,
    engine_id: str,
    prompt: str,
    max_output_len: int,
    sampling: dict[str, Any],
) -> dict[str, Any]:
    """Generate an answer to `prompt` with the engine `engine_id` (or its first digits).

    Raises:
        EngineUnknownError: there is no such engine.
        NoTokenizerError: it has no tokenizer.
        WrongMachineError: it was compiled for another toolchain or another processor.
    """
    manifest = shop.store.get_manifest(engine_id)
    engine = EngineSpec.model_validate(manifest.core.spec["engine"])
    require_valid_here(shop, engine, manifest)
    shop.work_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ask-", dir=shop.work_root) as scratch_name:
        scratch = Path(scratch_name)
        shop.store.materialise(manifest.core.files, scratch / "engine")
        tokenizer = open_tokenizer(scratch / "engine")
        if tokenizer is None:
            raise NoTokenizerError(
                "the engine was published without a tokenizer",
                field="ENGINE",
                value=manifest.engine_id[:12],
                remedy="Build it from a model directory that has a tokenizer.json",
            )
        tokens, step_s = generate(
            shop,
            engine,
            scratch / "engine",
            tokenizer.encode_question(prompt),
            max_output_len,
            tokenizer.stop_ids,
            scratch,
            ignore,
            sampling,
        )
    return {
        "engine_id": manifest.engine_id,
        "prompt": prompt,
        "text": tokenizer.decode(tokens),
        "tokens": len(tokens),
        "ttft_s": step_s[0],
        "seconds": step_s[-1],
    }


def require_valid_here(shop: Workshop, engine: EngineSpec, manifest: Manifest) -> Toolchain:
    """Check that an engine runs on this machine; returns the toolchain that runs it.

    Raises:
        WrongMachineError: It does not.
    """
    toolchain = probe_backend(shop, engine)
    here = local_machine([toolchain])
    for mismatch in compatibility(manifest, here):
        raise WrongMachineError(
            f"the engine was compiled for {mismatch.engine!r}, here it is {mismatch.machine!r}",
            field=f"toolchain.{mismatch.field}",
            value=mismatch.machine,
            remedy="Run it on a machine like the one it was compiled on, or build it here",
        )
    return toolchain
