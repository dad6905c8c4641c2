"""TensorRT-LLM's own converters: which script a model needs, and how it is asked.

For architectures the built-in converter does not know. The scripts are part of a release's
`examples`; a backend that has the release's environment runs them (`UpstreamConverter`). Choosing
by model type matters: the script for Llama takes a Qwen2 model without a word and drops its biases.

Sources: `examples/*/convert_checkpoint.py` and their parsers, and MODEL_MAP of
`tensorrt_llm/models/__init__.py`, 0.16 and 1.x. Listed are the decoder-only language models whose
script can be told all it needs; those of ChatGLM and Baichuan guess the version from the path.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from trtforge.checkpoint.config_keys import CONFIG_NAME, config_field, value_error
from trtforge.checkpoint.dialect import normalised_config
from trtforge.checkpoint.hf_config import InvalidConfigError
from trtforge.checkpoint.regular_file import read_whole
from trtforge.checkpoint.strict_json import parse_object
from trtforge.checkpoint.target import Target
from trtforge.checkpoint.weights import read_weights
from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.progress import OnProgress
from trtforge.spec import did_you_mean

_SCRIPT = "convert_checkpoint.py"
_MAX_CONFIG_BYTES = 4 << 20


class UnknownModelTypeError(InputError):
    """No script of the release converts this type of model."""


class ScriptContradictionError(InputError):
    """Model type and architecture belong to different scripts; one of them would be wrong."""


class ScriptOptionError(InputError):
    """The script for this type of model has no option for what is asked."""


class DroppedLayersError(InputError):
    """The release would leave layers out without a word."""


class NoUpstreamConverterError(InputError):
    """No backend that could run a release's scripts is configured."""


@dataclass(frozen=True)
class Script:
    """One `convert_checkpoint.py`.

    Attributes:
        folder: Below `examples` in 0.16.
        newer_folder: Below `examples/models` in 1.x.
        parallel_embedding: Whether it has `--use_parallel_embedding`.
        style: How it spells the other options; `gemma` has dashes and no pipeline parallelism.
    """

    folder: str
    newer_folder: str
    parallel_embedding: bool = True
    style: Literal["common", "gemma"] = "common"

    def path(self, version: str) -> PurePosixPath:
        """Relative to the root of the release's sources."""
        if version.startswith("0."):
            return PurePosixPath("examples", self.folder, _SCRIPT)
        return PurePosixPath("examples/models", self.newer_folder, _SCRIPT)


@dataclass(frozen=True)
class ModelType:
    """A `model_type` of Hugging Face configs.

    Attributes:
        since: The first release that converts it.
        arguments: What its script must be told besides.
    """

    script: Script
    architectures: tuple[str, ...]
    since: Literal["0.16", "1.0", "1.1"] = "0.16"
    arguments: tuple[str, ...] = ()


_BLOOM = Script("bloom", "contrib/bloom")
_COMMANDR = Script("commandr", "core/commandr")
_DBRX = Script("dbrx", "contrib/dbrx")
_DEEPSEEK_V1 = Script("deepseek_v1", "contrib/deepseek_v1")
_DEEPSEEK_V2 = Script("deepseek_v2", "contrib/deepseek_v2")
_FALCON = Script("falcon", "contrib/falcon")
_GEMMA = Script("gemma", "core/gemma", parallel_embedding=False, style="gemma")
_GPT = Script("gpt", "core/gpt")
_GPTJ = Script("gptj", "contrib/gptj", parallel_embedding=False)
_GPTNEOX = Script("gptneox", "contrib/gptneox")
_INTERNLM2 = Script("internlm2", "core/internlm2")
_LLAMA = Script("llama", "core/llama")
_MAMBA = Script("mamba", "core/mamba", parallel_embedding=False)
_MPT = Script("mpt", "contrib/mpt")
_NEMOTRON_NAS = Script("nemotron_nas", "core/nemotron_nas")
_OPT = Script("opt", "contrib/opt")
_PHI = Script("phi", "core/phi", parallel_embedding=False)
_QWEN = Script("qwen", "core/qwen")

MODEL_TYPES: Mapping[str, ModelType] = MappingProxyType(
    {
        "arctic": ModelType(_LLAMA, ("ArcticForCausalLM",)),
        "bloom": ModelType(_BLOOM, ("BloomForCausalLM",)),
        "cohere": ModelType(_COMMANDR, ("CohereForCausalLM",)),
        "dbrx": ModelType(_DBRX, ("DbrxForCausalLM",)),
        "deepseek": ModelType(_DEEPSEEK_V1, ("DeepseekForCausalLM",)),
        "deepseek_v2": ModelType(_DEEPSEEK_V2, ("DeepseekV2ForCausalLM",)),
        "exaone": ModelType(_LLAMA, ("ExaoneForCausalLM",)),
        "falcon": ModelType(_FALCON, ("FalconForCausalLM",)),
        "RefinedWeb": ModelType(_FALCON, ("RWForCausalLM",)),
        "RefinedWebModel": ModelType(_FALCON, ("RWForCausalLM",)),
        "gemma": ModelType(_GEMMA, ("GemmaForCausalLM",)),
        "gemma2": ModelType(_GEMMA, ("Gemma2ForCausalLM",)),
        "gemma3_text": ModelType(_GEMMA, ("Gemma3ForCausalLM",), since="1.0"),
        "gpt2": ModelType(
            _GPT, ("GPT2LMHeadModel", "GPT2LMHeadCustomModel"), arguments=("--gpt_variant=gpt2",)
        ),
        "gpt_neox": ModelType(_GPTNEOX, ("GPTNeoXForCausalLM",)),
        "gptj": ModelType(_GPTJ, ("GPTJForCausalLM",)),
        "granite": ModelType(_LLAMA, ("GraniteForCausalLM",), since="1.0"),
        "granitemoe": ModelType(_LLAMA, ("GraniteMoeForCausalLM",), since="1.0"),
        "internlm": ModelType(_LLAMA, ("InternLMForCausalLM",)),
        "internlm2": ModelType(_INTERNLM2, ("InternLM2ForCausalLM",)),
        "llama": ModelType(_LLAMA, ("LlamaForCausalLM",)),
        "mamba": ModelType(_MAMBA, ("MambaForCausalLM",)),
        "mistral": ModelType(_LLAMA, ("MistralForCausalLM",)),
        "mixtral": ModelType(_LLAMA, ("MixtralForCausalLM",)),
        "mpt": ModelType(_MPT, ("MPTForCausalLM", "MptForCausalLM")),
        "nemotron": ModelType(
            _GPT, ("NemotronForCausalLM",), arguments=("--gpt_variant=nemotron",)
        ),
        "nemotron-nas": ModelType(_NEMOTRON_NAS, ("DeciLMForCausalLM",)),
        "opt": ModelType(_OPT, ("OPTForCausalLM",)),
        "phi": ModelType(_PHI, ("PhiForCausalLM",)),
        "phi3": ModelType(_PHI, ("Phi3ForCausalLM",)),
        "phi3small": ModelType(_PHI, ("Phi3SmallForCausalLM",)),
        "phimoe": ModelType(_PHI, ("PhiMoEForCausalLM",)),
        "qwen": ModelType(_QWEN, ("QWenLMHeadModel", "QWenForCausalLM")),
        "qwen2": ModelType(_QWEN, ("Qwen2ForCausalLM",)),
        "qwen2_moe": ModelType(_QWEN, ("Qwen2MoeForCausalLM",)),
        "qwen3": ModelType(_QWEN, ("Qwen3ForCausalLM",), since="1.0"),
        "qwen3_moe": ModelType(_QWEN, ("Qwen3MoeForCausalLM",), since="1.1"),
        "skywork": ModelType(_LLAMA, ("SkyworkForCausalLM",)),
        "starcoder2": ModelType(
            _GPT, ("Starcoder2ForCausalLM",), arguments=("--gpt_variant=starcoder2",)
        ),
    }
)
_TYPE_OF_ARCHITECTURE: Mapping[str, str] = {
    architecture: name for name, kind in MODEL_TYPES.items() for architecture in kind.architectures
}


@runtime_checkable
class UpstreamConverter(Protocol):
    """A backend that has a release's environment and sources, and runs its scripts there."""

    def convert_upstream(
        self, model_dir: Path, out_dir: Path, target: Target, on_progress: OnProgress
    ) -> list[FileRef]:
        """Convert with the release's own script; `out_dir` appears complete or not at all.

        `model_dir` has passed `preflight_upstream`, and its config.json has been through
        `write_normalised_config`.

        Raises:
            BuildError: The script failed, or left no complete checkpoint.
        """
        ...


def require_upstream_converter(backend_name: str, backend: object) -> UpstreamConverter:
    """The backend, when it can run a release's scripts.

    Raises:
        NoUpstreamConverterError: It cannot.
    """
    if isinstance(backend, UpstreamConverter):
        return backend
    raise NoUpstreamConverterError(
        "no backend that has TensorRT-LLM's own conversion scripts is configured (engine.backend "
        f"is {backend_name})",
        field="checkpoint.tool",
        value="upstream",
        remedy="Use checkpoint.tool trtforge for Llama, Mistral and Qwen models; others need a "
        "backend with TensorRT-LLM's environment",
    )


def preflight_upstream(model_dir: Path, target: Target) -> None:
    """What can be known of a conversion by a release's script before it is run.

    Raises:
        InputError: One subclass per cause: what `script_for`, `command_arguments` and the readers
            of config.json and of the weights' headers raise; DroppedLayersError.
    """
    config = _read_config(model_dir)
    command_arguments(config, target, model_dir, model_dir)
    normalised_config(config)
    layers = next(
        (config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config),
        None,
    )
    if target.release == "0.16" and isinstance(layers, int) and layers % target.pp:
        raise DroppedLayersError(
            f"{layers} layers do not divide by it, and TensorRT-LLM {target.version} would drop "
            f"{layers % target.pp} of them without a word",
            field="checkpoint.pp",
            value=target.pp,
            remedy="Use a divisor of the number of layers, or target 1.0 or newer",
        )
    read_weights(model_dir)


def script_for(config: Mapping[str, Any], version: str) -> PurePosixPath:
    """The script that converts a model, relative to the root of the release's sources.

    Args:
        config: The model's config.json.
        version: The release, as in `Target.version`.

    Raises:
        UnknownModelTypeError: None does.
        ScriptContradictionError: `architectures` belongs to another one.
        ConfigValueError: `model_type` is missing.
    """
    return _model_type(config, version).script.path(version)


def command_arguments(
    config: Mapping[str, Any], target: Target, model_dir: Path, out_dir: Path
) -> list[str]:
    """The script's command line. The type is always given: the scripts guess it wrongly.

    Raises:
        ScriptOptionError: The script cannot split the model in this way.
        InputError: What `script_for` raises.
    """
    kind = _model_type(config, target.version)
    script = kind.script
    name = str(script.path(target.version))
    if target.use_parallel_embedding and not script.parallel_embedding:
        raise _no_option(name, "use_parallel_embedding", True, "Use false")
    if script.style == "gemma":
        if target.pp > 1:
            raise _no_option(name, "pp", target.pp, "Use 1")
        return [
            "--ckpt-type=hf",
            f"--model-dir={model_dir}",
            f"--output-model-dir={out_dir}",
            f"--dtype={target.dtype}",
            f"--world-size={target.tp}",
        ]
    arguments = [
        f"--model_dir={model_dir}",
        f"--output_dir={out_dir}",
        f"--dtype={target.dtype}",
        f"--tp_size={target.tp}",
        f"--pp_size={target.pp}",
        *kind.arguments,
    ]
    if target.use_parallel_embedding:
        arguments += [
            "--use_parallel_embedding",
            f"--embedding_sharding_dim={target.embedding_sharding_dim}",
        ]
    return arguments


def write_normalised_config(model_dir: Path) -> None:
    """Replace config.json by the dialect the scripts' transformers can read.

    The file is renamed into place: others that are links to the same bytes keep theirs.
    """
    path = model_dir / CONFIG_NAME
    text = json.dumps(normalised_config(_read_config(model_dir)), indent=2)
    temporary = model_dir / f".{CONFIG_NAME}.partial"
    temporary.write_text(text)
    temporary.replace(path)


def _model_type(config: Mapping[str, Any], version: str) -> ModelType:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise value_error("model_type", name, "must be the name of the type of model")
    kind = MODEL_TYPES.get(name)
    if kind is None or _number(kind.since) > _number(version):
        remedy = (
            f"Use target {kind.since} or newer" if kind else did_you_mean(name, list(MODEL_TYPES))
        )
        raise UnknownModelTypeError(
            f"TensorRT-LLM {version} has no script that converts this type of model",
            field=config_field("model_type"),
            value=name,
            remedy=remedy,
        )
    match config.get("architectures"):
        case [str(architecture), *_] if architecture in _TYPE_OF_ARCHITECTURE:
            other = _TYPE_OF_ARCHITECTURE[architecture]
            if MODEL_TYPES[other].script != kind.script:
                raise ScriptContradictionError(
                    f"the architecture belongs to model type {other!r}, but model_type is "
                    f"{name!r}, and another script would convert it",
                    field=config_field("architectures"),
                    value=architecture,
                    remedy="Correct the one that is wrong, or take config.json from the model's "
                    "original repository",
                )
    return kind


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _no_option(script: str, field: str, value: object, remedy: str) -> ScriptOptionError:
    return ScriptOptionError(
        f"{script} has no option for it", field=f"checkpoint.{field}", value=value, remedy=remedy
    )


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / CONFIG_NAME
    try:
        return parse_object(read_whole(path, _MAX_CONFIG_BYTES))
    except ValueError as error:
        raise InvalidConfigError(
            f"the file {error}",
            field="file",
            value=str(path),
            remedy="Download the file again",
        ) from error
