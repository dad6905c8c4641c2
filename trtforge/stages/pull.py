"""pull: the model's files, from wherever they are, into the store."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.files import FileRef, describe_directory, files_digest
from trtforge.progress import OnProgress
from trtforge.sources import LocalSource, ResolvedSource, fetch, parse_source, resolve
from trtforge.spec import BuildSpec
from trtforge.stages.prompts import PROMPT_FILES, require_prompts_fit
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.stages.target import require_convertible
from trtforge.store import StageResult
from trtforge.tokenizer import open_tokenizer


@dataclass(frozen=True)
class PulledModel:
    """The model a build starts from."""

    name: str
    source: str
    revision: str | None
    licence: str | None
    files: tuple[FileRef, ...]

    @property
    def content_digest(self) -> str:
        """Of all files: the same bytes give the same digest, whatever the source."""
        return files_digest(self.files)

    @property
    def weights_digest(self) -> str:
        """Of what conversion reads."""
        return files_digest(self.weights)

    @property
    def weights(self) -> tuple[FileRef, ...]:
        """Safetensors files, their index and config.json."""
        return tuple(
            f
            for f in self.files
            if f.path.endswith((".safetensors", ".safetensors.index.json"))
            or f.path == "config.json"
        )

    @property
    def companions(self) -> tuple[FileRef, ...]:
        """What an engine is published with: tokenizer, chat template, licence."""
        left = set(self.weights)
        return tuple(f for f in self.files if f not in left)


def resolve_model(shop: Workshop, spec: BuildSpec) -> ResolvedSource:
    """Pin the source down (a branch becomes a commit) and check what can be checked in place.

    Raises:
        InputError, ServiceError: of `trtforge.sources`; for a local directory also what the
            converter's preflight and the tokenizer find, before anything is copied.
    """
    resolved = resolve(parse_source(spec.model.source), token=shop.hub_token)
    if resolved.kind == "local":
        directory = _local_directory(resolved)
        require_convertible(directory, spec)
        require_prompts_fit(spec, directory)
    return resolved


def pull_inputs(resolved: ResolvedSource) -> dict[str, Any]:
    """What decides the outputs: the commit, or where there is none the content itself."""
    if resolved.kind == "local":
        directory = _local_directory(resolved)
        names = [f.path for f in resolved.files]
        return {"content": files_digest(describe_directory(directory, names))}
    return {
        "uri": resolved.uri,
        "files": [[f.path, f.size_bytes, f.fingerprint] for f in resolved.files],
    }


def pull(shop: Workshop, spec: BuildSpec) -> tuple[PulledModel, StageOutcome]:
    """Fetch, check and store the model's files.

    Raises:
        InputError: the model cannot be converted, and is not stored; or the prompts of the spec
            do not fit the engine it asks for.
        ServiceError: the source or the store failed.
    """
    resolved = resolve_model(shop, spec)

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        files = fetch(resolved, scratch / "model", token=shop.hub_token, on_progress=on_progress)
        # A model that cannot be converted is refused before it takes room in the store.
        require_convertible(scratch / "model", spec)
        open_tokenizer(scratch / "model")
        return Made(
            scratch / "model",
            files,
            {"content_digest": files_digest(files), "size_bytes": sum(f.size_bytes for f in files)},
        )

    outcome = run_stage(shop, "pull", pull_inputs(resolved), make, _describe, resumable=True)
    model = pulled_model(spec, resolved, outcome.result)
    if resolved.kind != "local":  # of a local directory it is known already
        _require_prompts_fit(shop, spec, model)
    return model, outcome


def pulled_model(spec: BuildSpec, resolved: ResolvedSource, result: StageResult) -> PulledModel:
    """What the pull stage's record says, for the stages after it."""
    return PulledModel(
        name=spec.model.name or default_name(resolved.uri),
        source=resolved.uri,
        revision=resolved.revision,
        licence=resolved.licence,
        files=result.outputs,
    )


def default_name(uri: str) -> str:
    """The last part of a source, without its revision: the name aliases are filed under."""
    last = uri.rstrip("/").rsplit("/", 1)[-1]
    return last.partition("@")[0] if uri.startswith("hf://") else last


def _require_prompts_fit(shop: Workshop, spec: BuildSpec, model: PulledModel) -> None:
    # Not in the stage: the prompts belong to the spec, and the model is good without them.
    shop.work_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="prompts-", dir=shop.work_root) as scratch:
        small = [f for f in model.files if f.path in PROMPT_FILES]
        shop.store.materialise(small, Path(scratch) / "model")
        require_prompts_fit(spec, Path(scratch) / "model")


def _describe(result: StageResult) -> str:
    size_bytes = sum(f.size_bytes for f in result.outputs)
    return f"{len(result.outputs)} files, {size_bytes / 1e6:.1f} MB"


def _local_directory(resolved: ResolvedSource) -> Path:
    source = parse_source(resolved.uri)
    assert isinstance(source, LocalSource)
    return source.path
