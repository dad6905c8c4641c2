"""BuildSpec: what a user asks for. It is the form in the Prefect UI and the file of the CLI.

Unknown keys are errors with "did you mean". The models can be validated by anyone (Prefect, the
API); `parse_spec` gives the errors of `trtforge.errors`, one line each.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from trtforge.engines.trtllm import versions as trtllm_versions
from trtforge.errors import InputError

AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
OptionValue = bool | int | float | str
TimingCacheMode = Literal["off", "read", "read-write"]
PromptSet = Literal["general", "multilingual", "code", "long-context"]
PerformanceMetric = Literal["output_tokens_per_s", "ttft_s", "itl_s"]


class SpecError(InputError):
    """The spec is wrong; the message names the field, the value and what to type instead."""


class SpecFileError(InputError):
    """The spec file cannot be read, or is not YAML with a mapping at the top."""


def did_you_mean(word: str, known: list[str]) -> str:
    """`Did you mean 'x'?`, or the known words when none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}"


class _FoundError(ValueError):
    """A validator's finding; `field` is relative to the model that raised it."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy


_IN_CAPITALS = {"tp", "pp", "kl", "ttft", "itl"}
_UNITS = {"s": "(s)", "ms": "(ms)"}


def _label(name: str, _: object) -> str:
    """What the run form calls a field: `Max seq len`, `TTFT (ms)`."""
    words = [word.upper() if word in _IN_CAPITALS else word for word in name.split("_")]
    words[1:] = [_UNITS.get(word, word) for word in words[1:]]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        field_title_generator=_label,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = list(cls.model_fields)
            for key in data:
                if key not in known:
                    raise _FoundError(
                        str(key), data[key], "unknown key", did_you_mean(str(key), known)
                    )
        return data


def _at(position: int) -> dict[str, Any]:
    # On PostgreSQL the run form would otherwise order fields by the length of their names.
    return {"position": position}


class ModelSpec(_Part):
    """Which weights."""

    source: str = Field(
        min_length=1,
        title="Source",
        description="hf://org/name@revision, a local directory, or s3://bucket/prefix",
        json_schema_extra=_at(0),
    )
    name: ModelName | None = Field(
        default=None,
        title="Name",
        description="Name the engine's aliases are filed under; taken from the source when empty",
        json_schema_extra=_at(1),
    )


class CheckpointSpec(_Part):
    """How the weights become a TensorRT-LLM checkpoint."""

    dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the weights", json_schema_extra=_at(0)
    )
    tp: int = Field(default=1, ge=1, description="Tensor-parallel ranks", json_schema_extra=_at(1))
    pp: int = Field(
        default=1, ge=1, description="Pipeline-parallel ranks", json_schema_extra=_at(2)
    )
    use_parallel_embedding: bool = Field(
        default=False,
        description="Split the input embedding over the tensor-parallel ranks too",
        json_schema_extra=_at(3),
    )
    embedding_sharding_dim: Literal[0, 1] = Field(
        default=0,
        description="Which dimension of a parallel embedding is split: 0 the vocabulary, 1 hidden",
        json_schema_extra=_at(4),
    )
    target: Literal["1.2", "1.1", "1.0", "0.16"] = Field(
        default="1.2",
        description="Release of TensorRT-LLM that will load the checkpoint",
        json_schema_extra=_at(5),
    )
    tool: Literal["trtforge", "upstream"] = Field(
        default="trtforge",
        description="trtforge: the built-in converter, for Llama, Mistral and Qwen; upstream: the "
        "release's own convert_checkpoint.py, for other architectures",
        json_schema_extra=_at(6),
    )

    @field_validator("target", mode="before")
    @classmethod
    def _target_is_text(cls, value: Any) -> Any:
        # YAML takes an unquoted 1.2 for a number.
        return str(value) if isinstance(value, float) else value


class EngineSpec(_Part):
    """What the engine must be able to do."""

    backend: Literal["aoti", "trtllm"] = Field(
        default="aoti",
        description="aoti: PyTorch AOTInductor, on a CPU or a CUDA GPU; trtllm: TensorRT-LLM, on "
        "an NVIDIA GPU",
        json_schema_extra=_at(0),
    )
    version: str = Field(
        default="",
        description=f"Release of TensorRT-LLM: {', '.join(trtllm_versions.SUPPORTED)}; empty for "
        "trtllm: the first of these. aoti takes the PyTorch that is installed",
        # An engine of a backend without releases is the one it was before there was this field.
        exclude_if=lambda version: not version,
        json_schema_extra=_at(1),
    )
    max_batch_size: int = Field(
        default=4, ge=1, le=4096, description="Sequences at once", json_schema_extra=_at(2)
    )
    max_input_len: int = Field(
        default=384, ge=2, description="Tokens in one prompt", json_schema_extra=_at(3)
    )
    max_seq_len: int = Field(
        default=512,
        ge=3,
        description="Tokens in one sequence, prompt and output together",
        json_schema_extra=_at(4),
    )
    max_num_tokens: int = Field(
        default=1024,
        ge=2,
        description="Tokens in one forward pass, over all sequences",
        json_schema_extra=_at(5),
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="Options of the backend; aoti: device (auto, cpu, cuda), threads (0 = all), "
        "decode (graphs; kernels: on a GPU, experimental); trtllm: those of the release's "
        "trtllm-build, without the dashes",
        json_schema_extra=_at(6),
    )
    # How quickly the engine is built, not what it is: part of no stage's key and no engine's id.
    timing_cache: TimingCacheMode = Field(
        default="read-write",
        title="Timing cache",
        description="The model.cache that all builds with this toolchain share. read-write: start "
        "from it and add to it; read: start from it only; off: compile cold and share nothing. An "
        "engine that the store has is found in every mode",
        json_schema_extra=_at(7),
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_release(cls, data: Any) -> Any:
        """An empty release means the default one: what is kept of a build names it."""
        if not isinstance(data, Mapping) or data.get("backend") != "trtllm":
            return data
        version = data.get("version", "")
        # YAML takes an unquoted 1.2 for a number; it is refused as the release it looks like.
        text = str(version) if isinstance(version, float) else version
        return {**data, "version": trtllm_versions.DEFAULT if text == "" else text}

    @model_validator(mode="after")
    def _release_is_supported(self) -> Self:
        if self.backend == "trtllm":
            try:
                trtllm_versions.release(self.version)
            except InputError as error:
                raise _FoundError("version", self.version, error.problem, error.remedy) from error
        elif self.version:
            raise _FoundError(
                "version",
                self.version,
                f"the backend {self.backend} has no releases to choose from",
                "Leave it out: the PyTorch of the toolchain is used",
            )
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.max_input_len > self.max_seq_len:
            raise _FoundError(
                "max_input_len",
                self.max_input_len,
                f"a prompt of that length does not fit into max_seq_len {self.max_seq_len}",
                f"Use at most {self.max_seq_len}, or raise max_seq_len",
            )
        if self.max_num_tokens < self.max_input_len:
            raise _FoundError(
                "max_num_tokens",
                self.max_num_tokens,
                f"a forward pass must hold one prompt of max_input_len {self.max_input_len}",
                f"Use at least {self.max_input_len}",
            )
        return self


WorkloadName = Literal["smoke", "chat", "summary", "standard"]
WORKLOADS: dict[WorkloadName, tuple[int, int]] = {
    "smoke": (128, 32),
    "chat": (1000, 200),
    "summary": (2048, 128),
    "standard": (1000, 1000),
}
"""Input and output tokens of the shapes that have a name."""


class Workload(_Part):
    """One shape of request: a name, or exact lengths, or prompts of your own.

    A text stands for a name: `workload: chat`. Every output has exactly `output_tokens`.
    """

    name: WorkloadName | None = Field(
        default=None,
        description="smoke 128/32, chat 1000/200, summary 2048/128, standard 1000/1000 tokens in "
        "and out; empty: the lengths below",
        exclude_if=lambda name: name is None,
        json_schema_extra=_at(0),
    )
    input_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens in, of every prompt; 0: those of the name, or of the prompts",
        json_schema_extra=_at(1),
    )
    output_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens out, of every answer; 0: those of the name",
        json_schema_extra=_at(2),
    )
    prompts_file: str = Field(
        default="",
        description="JSONL with prompts of your own, where the benchmark runs: each line "
        '{"prompt": text} or {"token_ids": [...]}',
        exclude_if=lambda path: not path,
        json_schema_extra=_at(3),
    )

    @property
    def label(self) -> str:
        """What a report calls it: `chat`, `1000/200`, `prompts/200`."""
        first = "prompts" if self.prompts_file else str(self.input_tokens)
        return self.name or f"{first}/{self.output_tokens}"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping) or data.get("name") not in WORKLOADS:
            return data
        shape = dict(zip(("input_tokens", "output_tokens"), WORKLOADS[data["name"]], strict=True))
        for field, tokens in shape.items():
            if data.get(field) not in (None, 0, tokens):
                raise _FoundError(
                    field,
                    data[field],
                    f"the workload {data['name']} has {tokens}",
                    "Leave it out, or leave the name out",
                )
        return {**data, **shape}

    @model_validator(mode="after")
    def _lengths_are_told(self) -> Self:
        if self.prompts_file and (self.name or self.input_tokens):
            raise _FoundError(
                "prompts_file",
                self.prompts_file,
                "the prompts have lengths of their own",
                "Give prompts_file and output_tokens alone",
            )
        if not self.prompts_file and not self.input_tokens:
            raise _FoundError(
                "input_tokens", 0, "no prompt is so short", "Name a workload, or give both lengths"
            )
        if self.output_tokens < 2:
            raise _FoundError(
                "output_tokens",
                self.output_tokens,
                "the time between tokens needs two of them",
                "Expected: 2 or more",
            )
        return self


class SloSpec(_Part):
    """What a request must keep to count for goodput; 0 asks nothing."""

    ttft_ms: float = Field(
        default=0, ge=0, description="Time to first token, at most", json_schema_extra=_at(0)
    )
    itl_ms: float = Field(
        default=0,
        ge=0,
        description="Mean time between tokens of the request, at most",
        json_schema_extra=_at(1),
    )


class BenchmarkSpec(_Part):
    """What is measured."""

    workload: Workload = Field(
        default=Workload(input_tokens=128, output_tokens=32),
        description="Lengths of each request",
        json_schema_extra=_at(0),
    )
    concurrency: tuple[int, ...] = Field(
        default=(),
        description="Requests at once, one measurement each; empty: 1, 2, 4 … max_batch_size",
        json_schema_extra=_at(1),
    )
    warmups: int = Field(
        default=1,
        ge=1,
        description="Batches thrown away, at each concurrency",
        json_schema_extra=_at(2),
    )
    repeats: int = Field(
        default=3,
        ge=1,
        description="Runs over all concurrencies; intervals need 2, and 3 to mean much",
        json_schema_extra=_at(3),
    )
    seed: int = Field(default=0, ge=0, description="Of the prompts", json_schema_extra=_at(4))
    requests: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Requests at each concurrency in each repeat, rounded up to whole batches; 0: "
        "one batch. A p99 needs 100 in all",
        exclude_if=lambda requests: not requests,
        json_schema_extra=_at(5),
    )
    in_turns: bool = Field(
        default=False,
        title="In turns",
        description="Load engine and original model anew for each repeat, by turns, so that a "
        "machine that grows slower cannot favour one of them",
        exclude_if=lambda in_turns: not in_turns,
        json_schema_extra=_at(6),
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds after which a request counts as timed out",
        exclude_if=lambda timeout_s: timeout_s == 600.0,
        json_schema_extra=_at(7),
    )
    slo: SloSpec = Field(
        default=SloSpec(),
        title="SLO",
        description="What a request must keep to count for goodput",
        exclude_if=lambda slo: slo == SloSpec(),
        json_schema_extra=_at(8),
    )
    hourly_price: float = Field(
        default=0,
        ge=0,
        title="Hourly price",
        description="Of the machine, in any currency; gives the cost of a million output tokens",
        exclude_if=lambda price: not price,
        json_schema_extra=_at(9),
    )


class PerformanceGateSpec(_Part):
    """How much slower than the engine in use a new one may be."""

    mode: Literal["enforce", "report", "off"] = Field(
        default="enforce",
        description="enforce: an engine that is slower beyond doubt does not get the aliases; "
        "report: say so only; off: do not compare. Without an engine to compare with, nothing is "
        "enforced",
        json_schema_extra=_at(0),
    )
    tolerance: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share by which it may be slower; it fails only when the whole confidence "
        "interval lies beyond",
        json_schema_extra=_at(1),
    )
    metrics: tuple[PerformanceMetric, ...] = Field(
        default=("output_tokens_per_s", "ttft_s"),
        min_length=1,
        description="What is compared, at each concurrency of the benchmark",
        json_schema_extra=_at(2),
    )
    repeats: int = Field(
        default=5,
        ge=3,
        description="Runs of each of the two engines, in turns, where both run on the machine",
        json_schema_extra=_at(3),
    )


class GatesSpec(_Part):
    """What an engine must pass before it gets its aliases."""

    prompts: tuple[str, ...] = Field(
        default=(),
        description="Prompts of your own whose greedy output is compared with the original model's",
        json_schema_extra=_at(0),
    )
    new_tokens: int = Field(
        default=24, ge=1, description="Tokens compared for each prompt", json_schema_extra=_at(1)
    )
    rounding_factor: float = Field(
        default=2.0,
        gt=0,
        description="How many times the original 16-bit model's own rounding error (its distance "
        "from fp32) the engine may be away from fp32",
        json_schema_extra=_at(2),
    )
    step_factor: float = Field(
        default=4.0,
        gt=0,
        description="The same at any single token, where luck counts for more",
        json_schema_extra=_at(3),
    )
    prompt_sets: tuple[PromptSet, ...] = Field(
        default=("general", "multilingual", "code", "long-context"),
        description="Prompts that trtforge brings; those that do not fit the engine are left out. "
        "long-context is one prompt of max_input_len tokens (8192 at most)",
        json_schema_extra=_at(4),
    )
    text_tokens: int = Field(
        default=64,
        ge=0,
        le=4096,
        description="Tokens of a text that trtforge brings, which engine and original model read "
        "token by token: for the three limits below. 0: none",
        json_schema_extra=_at(5),
    )
    kl_factor: float = Field(
        default=4.0,
        gt=0,
        description="On the text: how many times the 16-bit model's own KL divergence from fp32 "
        "the engine's may be",
        json_schema_extra=_at(6),
    )
    top1_agreement: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="On the text: share of tokens where engine and original model find the same "
        "one likeliest, or where rounding explains that they do not",
        json_schema_extra=_at(7),
    )
    perplexity_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="On the text: share by which the engine's perplexity may differ from the "
        "16-bit model's",
        json_schema_extra=_at(8),
    )
    performance: PerformanceGateSpec = Field(
        default=PerformanceGateSpec(),
        title="Performance",
        description="How much slower than the engine in use a new one may be",
        json_schema_extra=_at(9),
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if not (self.prompts or self.prompt_sets or self.text_tokens):
            raise _FoundError(
                "prompt_sets",
                [],
                "with no prompt and no text nothing would be compared",
                "Name one of general, multilingual, code, long-context, or give prompts",
            )
        return self


class PublishSpec(_Part):
    """Under which names, and what the published copy is asked before it gets them."""

    aliases: tuple[AliasName, ...] = Field(
        default=("latest",),
        description="Pointers moved to the new engine, per model, GPU and backend",
        json_schema_extra=_at(0),
    )
    prompt: str = Field(
        default="How do I count to nine in French?",
        min_length=1,
        description="Put to the published copy, downloaded to an empty directory",
        json_schema_extra=_at(1),
    )
    max_output_len: int = Field(
        default=100, ge=1, description="Tokens of its answer", json_schema_extra=_at(2)
    )


class BuildSpec(_Part):
    """One engine to build."""

    model: ModelSpec = Field(title="Model", description="Which weights", json_schema_extra=_at(0))
    checkpoint: CheckpointSpec = Field(
        default=CheckpointSpec(),
        title="Checkpoint",
        description="How the weights become a TensorRT-LLM checkpoint",
        json_schema_extra=_at(1),
    )
    engine: EngineSpec = Field(
        default=EngineSpec(),
        title="Engine",
        description="What the engine must be able to do",
        json_schema_extra=_at(2),
    )
    benchmark: BenchmarkSpec = Field(
        default=BenchmarkSpec(),
        title="Benchmark",
        description="What is measured",
        json_schema_extra=_at(3),
    )
    gates: GatesSpec = Field(
        default=GatesSpec(),
        title="Gates",
        description="What an engine must pass before it gets its aliases",
        json_schema_extra=_at(4),
    )
    publish: PublishSpec = Field(
        default=PublishSpec(),
        title="Publish",
        description="Under which names, after which last test",
        json_schema_extra=_at(5),
    )

    @property
    def ranks(self) -> int:
        """How many GPUs the engine runs on."""
        return self.checkpoint.tp * self.checkpoint.pp

    def concurrencies(self) -> tuple[int, ...]:
        """The numbers of requests at once to measure, smallest first."""
        most = self.engine.max_batch_size
        doubled = [2**n for n in range(most.bit_length()) if 2**n < most]
        return tuple(sorted(set(self.benchmark.concurrency or (*doubled, most))))

    @model_validator(mode="after")
    def _checkpoint_fits_backend(self) -> Self:
        """aoti runs one rank in bfloat16, and a release of TensorRT-LLM reads checkpoints of its
        own kind: both would find out only after the pull."""
        if self.engine.backend == "trtllm":
            release = trtllm_versions.release(self.engine.version)
            if self.checkpoint.target != release.checkpoint_target:
                raise _FoundError(
                    "checkpoint.target",
                    self.checkpoint.target,
                    f"TensorRT-LLM {release.version} does not load checkpoints written for it",
                    f"Use {release.checkpoint_target}, or choose another engine.version",
                )
            return self
        for field, problem, remedy in (
            ("tp", "splitting over several GPUs is not supported by the backend aoti", "Use 1"),
            ("pp", "splitting over several GPUs is not supported by the backend aoti", "Use 1"),
            ("dtype", "the backend aoti compiles bfloat16 only", "Use bfloat16"),
            (
                "use_parallel_embedding",
                "the backend aoti runs on one rank, which there is nothing to share out among",
                "Use false",
            ),
        ):
            value = getattr(self.checkpoint, field)
            if value != CheckpointSpec.model_fields[field].default:
                raise _FoundError(f"checkpoint.{field}", value, problem, remedy)
        return self

    @model_validator(mode="after")
    def _benchmark_fits_engine(self) -> Self:
        engine, load = self.engine, self.benchmark.workload
        for concurrency in self.benchmark.concurrency:
            if not 1 <= concurrency <= engine.max_batch_size:
                raise _FoundError(
                    "benchmark.concurrency",
                    concurrency,
                    f"the engine takes 1 to {engine.max_batch_size} sequences at once",
                    "Choose within that, or raise engine.max_batch_size",
                )
        if load.input_tokens > engine.max_input_len:
            raise _FoundError(
                "benchmark.workload.input_tokens",
                load.input_tokens,
                f"the engine takes prompts of {engine.max_input_len} tokens at most",
                "Shorten the workload, or raise engine.max_input_len",
            )
        total = load.input_tokens + load.output_tokens
        if total > engine.max_seq_len:
            raise _FoundError(
                "benchmark.workload",
                f"{load.input_tokens}+{load.output_tokens}",
                f"the engine takes {engine.max_seq_len} tokens in a sequence, this is {total}",
                "Shorten the workload, or raise engine.max_seq_len",
            )
        return self


def parse_spec(data: object) -> BuildSpec:
    """Validate plain data (from YAML or JSON).

    Raises:
        SpecError: for the first problem found.
    """
    try:
        return BuildSpec.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error) from error


def load_spec(path: Path) -> BuildSpec:
    """Read a spec from a YAML (or JSON) file.

    Raises:
        SpecFileError: the file cannot be read or is not a YAML mapping.
        SpecError: the spec in it is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise SpecFileError(
            f"the spec cannot be read ({problem})",
            field="SPEC",
            value=str(path),
            remedy="Give a readable YAML file",
        ) from error
    if not isinstance(data, dict):
        raise SpecFileError(
            "the spec must be a YAML mapping",
            field="SPEC",
            value=str(path),
            remedy="Begin with 'model:' and its 'source:'",
        )
    return parse_spec(data)


def _first_problem(error: ValidationError) -> SpecError:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    found = first.get("ctx", {}).get("error")
    if isinstance(found, _FoundError):
        return SpecError(
            found.problem,
            field=".".join([*where, found.field]),
            value=found.value,
            remedy=found.remedy,
        )
    problem = first["msg"][0].lower() + first["msg"][1:]
    if where[:2] == ["engine", "options"] and len(where) > 3:
        # One error for each type a value may have, with the type's name as a fourth part.
        where, problem = where[:3], "an option is true or false, a number or a text"
    field = ".".join(where)
    description = _describe(BuildSpec, where)
    if first["type"] == "missing":
        return SpecError(
            "this field is required", field=field, value=None, remedy=f"Give it: {description}"
        )
    return SpecError(problem, field=field, value=first["input"], remedy=f"Expected: {description}")


def _describe(model: type[BaseModel], where: list[str]) -> str:
    """What belongs at the path `where`: a mapping's keys, or the innermost field's description."""
    description = "a mapping with " + ", ".join(model.model_fields)
    current: Any = model
    for part in where:
        info = getattr(current, "model_fields", {}).get(part)
        if info is None:
            break
        current = info.annotation
        keys = getattr(current, "model_fields", None)
        description = "a mapping with " + ", ".join(keys) if keys else info.description
    return description
