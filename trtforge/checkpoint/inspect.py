"""What a TensorRT-LLM checkpoint directory holds, and whether it is sound; ours or upstream's.

Read are config.json and the headers of the rank files, no weights. The expected names and shapes
are computed here from the format's formulas, not with the converter's planning, so that each
checks the other.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtforge.checkpoint.config_keys import CONFIG_NAME
from trtforge.checkpoint.expected import (
    OUTPUT,
    expected_tensors,
    is_constant,
    layers_held,
    may_share_output,
    release_of,
)
from trtforge.checkpoint.regular_file import read_whole
from trtforge.checkpoint.safetensors_io import StoredTensor, read_header
from trtforge.checkpoint.strict_json import parse_object
from trtforge.errors import InputError

_MAX_CONFIG_BYTES = 4 << 20
_MAX_RANKS = 4096
_LISTED = 5
_RANK_FILE = re.compile(r"rank(0|[1-9][0-9]{0,8})\.safetensors")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_CHECKED = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
}


class NotACheckpointError(InputError):
    """The directory has no config.json of a TensorRT-LLM checkpoint."""


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a rank file; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class RankReport:
    """One readable rank file."""

    rank: int
    file: str
    file_bytes: int
    tensors: tuple[TensorReport, ...]

    @property
    def layers(self) -> int:
        """How many decoder layers it holds."""
        return layers_held(tensor.name for tensor in self.tensors)


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint directory.

    Attributes:
        release: Release of TensorRT-LLM it was written for, as the keys of `mapping` tell: `0.16`,
            `1.0`, `1.1`, `1.2`, `any`, or `unknown`.
        layers: `num_hidden_layers` of config.json.
        quantised: Name of the quantisation; the shapes of such a checkpoint are not checked.
        checked: Whether names and shapes of all tensors were compared with config.json.
        problems: What is wrong, one sentence each; empty when the checkpoint is sound.
    """

    architecture: str
    dtype: str
    release: str
    tp: int
    pp: int
    cp: int
    world_size: int
    layers: int
    quantised: str | None
    checked: bool
    ranks: tuple[RankReport, ...]
    problems: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all rank files."""
        return sum(rank.file_bytes for rank in self.ranks)

    def to_json(self, *, tensors: bool) -> dict[str, Any]:
        """Plain data; the tensors only on demand."""
        data = asdict(self) | {"size_bytes": self.size_bytes, "sound": not self.problems}
        for entry, rank in zip(data["ranks"], self.ranks, strict=True):
            entry["layers"] = rank.layers
            entry["tensor_bytes"] = sum(tensor.size_bytes for tensor in rank.tensors)
            if not tensors:
                entry["tensors"] = len(rank.tensors)
        return data


def inspect_checkpoint(directory: Path) -> CheckpointReport:
    """Read a checkpoint directory and find what is wrong with it.

    Raises:
        NotACheckpointError: There is no config.json, or not one of a checkpoint.
        InputError: config.json cannot be read.
    """
    config = _read_config(directory)
    problems: list[str] = []
    mapping = config["mapping"]
    tp, pp, cp = (
        _count(mapping, key, problems, "mapping.", default=default)
        for key, default in (("tp_size", 1), ("pp_size", 1), ("cp_size", 1))
    )
    world_size = _count(mapping, "world_size", problems, "mapping.", default=tp * pp * cp)
    if world_size != tp * pp * cp:
        problems.append(
            f"config.json: mapping.world_size is {world_size}, but tp_size {tp} × pp_size {pp} × "
            f"cp_size {cp} is {tp * pp * cp}"
        )
    ranks = _read_ranks(directory, tp * pp * cp, problems)
    layers = _count(config, "num_hidden_layers", problems, default=0)
    release = release_of(mapping)
    split = _Split(tp, pp, cp)
    _check_layers(ranks, layers, release, split, problems)
    quantised = _quantisation(config)
    architecture, dtype = str(config["architecture"]), str(config.get("dtype"))
    checked = architecture in _CHECKED and quantised is None and dtype in _DTYPES
    if checked:
        checked = _check_tensors(config, ranks, _DTYPES[dtype], layers, split, problems)
    return CheckpointReport(
        architecture=architecture,
        dtype=dtype,
        release=release,
        tp=tp,
        pp=pp,
        cp=cp,
        world_size=world_size,
        layers=layers,
        quantised=quantised,
        checked=checked,
        ranks=tuple(ranks),
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Split:
    tp: int
    pp: int
    cp: int

    def pp_rank(self, rank: int) -> int:
        return rank // (self.tp * self.cp)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.exists():
        raise NotACheckpointError(
            f"there is no {CONFIG_NAME} in it",
            field="CKPT",
            value=str(directory),
            remedy="Give a directory with config.json and rank0.safetensors",
        )
    try:
        config = parse_object(read_whole(path, _MAX_CONFIG_BYTES))
    except ValueError as error:
        raise NotACheckpointError(
            f"the file {error}",
            field="file",
            value=str(path),
            remedy="Convert the model again",
        ) from error
    if not isinstance(config.get("architecture"), str) or not isinstance(
        config.get("mapping"), dict
    ):
        hugging_face = "architectures" in config
        raise NotACheckpointError(
            "this is a Hugging Face model, not a checkpoint"
            if hugging_face
            else f"{CONFIG_NAME} has no 'architecture' and 'mapping', as a checkpoint's has",
            field="CKPT",
            value=str(directory),
            remedy="Convert it with 'trtforge convert' first"
            if hugging_face
            else "Give a directory with config.json and rank0.safetensors",
        )
    return config


def _count(
    config: Mapping[str, Any], key: str, problems: list[str], prefix: str = "", *, default: int
) -> int:
    value = config.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problems.append(f"config.json: {prefix}{key} is {value!r}, not a positive whole number")
    return default


def _read_ranks(directory: Path, expected: int, problems: list[str]) -> list[RankReport]:
    found = {}
    for path in directory.iterdir():
        if match := _RANK_FILE.fullmatch(path.name):
            found[int(match[1])] = path
    missing = [rank for rank in range(min(expected, _MAX_RANKS)) if rank not in found]
    if missing:
        problems.append(f"missing: {_listed([f'rank{rank}.safetensors' for rank in missing])}")
    if expected > _MAX_RANKS:
        problems.append(f"config.json: mapping asks for {expected} ranks")
    if extra := [path.name for rank, path in sorted(found.items()) if rank >= expected]:
        problems.append(f"more rank files than config.json's {expected}: {_listed(extra)}")
    ranks = []
    for rank, path in sorted(found.items()):
        if rank >= expected:
            continue
        try:
            stored = read_header(path)
        except InputError as error:
            problems.append(f"{path.name}: {error.problem}")
            continue
        ranks.append(_describe(rank, path, stored))
    return ranks


def _describe(rank: int, path: Path, stored: Mapping[str, StoredTensor]) -> RankReport:
    tensors = tuple(
        TensorReport(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes)
        for _, tensor in sorted(stored.items())
    )
    return RankReport(rank, path.name, path.stat().st_size, tensors)


def _quantisation(config: Mapping[str, Any]) -> str | None:
    quantisation = config.get("quantization")
    algorithm = quantisation.get("quant_algo") if isinstance(quantisation, dict) else None
    return None if algorithm is None else str(algorithm)


def _check_layers(
    ranks: list[RankReport], layers: int, release: str, split: _Split, problems: list[str]
) -> None:
    first_of_group: dict[int, RankReport] = {}
    for rank in ranks:
        first_of_group.setdefault(split.pp_rank(rank.rank), rank)
    if len(first_of_group) < split.pp or not layers:
        return  # what is missing has been said
    held = [rank.layers for _, rank in sorted(first_of_group.items())]
    if sum(held) != layers:
        dropped = layers % split.pp and sum(held) == layers - layers % split.pp
        cause = (
            ": TensorRT-LLM up to 0.18 drops layers that do not divide by pp_size"
            if dropped
            else ""
        )
        problems.append(
            f"the rank files hold {sum(held)} layers ({', '.join(map(str, held))}), but "
            f"config.json's num_hidden_layers is {layers}{cause}"
        )
    elif release.startswith("1."):
        each, more = divmod(layers, split.pp)
        wanted = [each + (index < more) for index in range(split.pp)]
        if held != wanted:
            problems.append(
                f"the pipeline ranks hold {', '.join(map(str, held))} layers; TensorRT-LLM "
                f"{release} looks for {', '.join(map(str, wanted))}"
            )


def _check_tensors(
    config: Mapping[str, Any],
    ranks: list[RankReport],
    dtype: str,
    layers: int,
    split: _Split,
    problems: list[str],
) -> bool:
    """Whether config.json says enough to know what every rank must hold."""
    for rank in ranks:
        try:
            expected = expected_tensors(
                config,
                tp=split.tp,
                layers=rank.layers,
                first=split.pp_rank(rank.rank) == 0,
                last=split.pp_rank(rank.rank) == split.pp - 1,
            )
        except InputError as error:
            problems.append(str(error))
            return False
        if all(tensor.name != OUTPUT for tensor in rank.tensors) and may_share_output(
            config, split.tp
        ):
            expected.pop(OUTPUT, None)
        _compare(rank, expected, dtype, problems)
    return bool(layers)


def _compare(
    rank: RankReport, expected: Mapping[str, tuple[int, ...]], dtype: str, problems: list[str]
) -> None:
    found = {tensor.name: tensor for tensor in rank.tensors}
    if missing := [name for name in expected if name not in found]:
        problems.append(f"{rank.file}: lacks {_listed(missing)}")
    if unknown := [name for name in found if name not in expected and not is_constant(name)]:
        problems.append(f"{rank.file}: has no use for {_listed(unknown)}")
    shapes, dtypes = [], []
    for name, shape in expected.items():
        if name in found and found[name].shape != shape:
            shapes.append(f"{name} {list(found[name].shape)} instead of {list(shape)}")
        if name in found and found[name].dtype != dtype:
            dtypes.append(f"{name} ({found[name].dtype})")
    if shapes:
        problems.append(f"{rank.file}: shapes do not follow from config.json: {_listed(shapes)}")
    if dtypes:
        problems.append(f"{rank.file}: not {dtype}, as config.json says: {_listed(dtypes)}")


def _listed(items: list[str]) -> str:
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")
