"""`inspect_checkpoint`: what loaders notice late, or never, is said by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtforge.checkpoint import convert
from trtforge.checkpoint.expected import release_of
from trtforge.checkpoint.inspect import NotACheckpointError, inspect_checkpoint
from trtforge.checkpoint.safetensors_io import encode_header, size_in_bytes
from trtforge.checkpoint.target import Target
from trtforge.errors import InputError

MODELS = Path(__file__).parents[2] / "fixtures" / "hf-models"
QKV = "transformer.layers.0.attention.qkv.weight"
Change = Callable[[Path], None]


def write_rank(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A rank file of zeros."""
    header = encode_header((name, *kind) for name, kind in tensors.items())
    data = sum(size_in_bytes(*kind) for kind in tensors.values())
    file.write_bytes(header + bytes(data))


def config(**changes: Any) -> Change:
    """Set keys of config.json; a dotted key with `__`; None removes."""

    def apply(directory: Path) -> None:
        file = directory / "config.json"
        data = json.loads(file.read_text())
        for name, value in changes.items():
            *parents, key = name.split("__")
            part = data
            for parent in parents:
                part = part[parent]
            if value is None:
                del part[key]
            else:
                part[key] = value
        file.write_text(json.dumps(data))

    return apply


def tensors(file: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change names, types or shapes in a rank file; the values become zeros."""

    def apply(directory: Path) -> None:
        report = inspect_checkpoint(directory)
        rank = next(rank for rank in report.ranks if rank.file == file)
        held = {tensor.name: (tensor.dtype, tensor.shape) for tensor in rank.tensors}
        change(held)
        write_rank(directory / file, held)

    return apply


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """3 layers over tp 2 × pp 2."""
    convert(MODELS / "llama31", tmp_path / "ckpt", Target(tp=2, pp=2))
    return tmp_path / "ckpt"


def test_what_upstream_writes_is_sound(upstream: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(upstream.config))
    for file, held in upstream.ranks.items():
        kinds = {name: (_stored(t["dtype"]), tuple(t["shape"])) for name, t in held.items()}
        write_rank(tmp_path / file, kinds)
    report = inspect_checkpoint(tmp_path)
    assert report.problems == ()
    assert report.checked
    assert (report.tp, report.pp, report.release) == (upstream.target.tp, upstream.target.pp, "1.2")


def _stored(dtype: str) -> str:
    return {"bfloat16": "BF16", "torch.bfloat16": "BF16"}.get(dtype, dtype)


@pytest.mark.parametrize("model", sorted(path.name for path in MODELS.iterdir()))
@pytest.mark.parametrize("tp", [1, 2])
def test_what_we_write_is_sound(model: str, tp: int, tmp_path: Path) -> None:
    convert(MODELS / model, tmp_path / "ckpt", Target(tp=tp))
    report = inspect_checkpoint(tmp_path / "ckpt")
    assert report.problems == ()
    assert [rank.file for rank in report.ranks] == [f"rank{r}.safetensors" for r in range(tp)]
    assert report.size_bytes == sum(f.stat().st_size for f in tmp_path.glob("ckpt/rank*"))


def test_qwen3_has_its_norms_though_its_config_says_nothing_of_them(
    hf_model: Any, tmp_path: Path
) -> None:
    model = hf_model("llama31")
    model.edit_config(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=16)
    stored = model.tensors()
    norm = stored["model.norm.weight"]
    for layer in range(3):
        for part in "qk":
            name = f"model.layers.{layer}.self_attn.{part}_norm.weight"
            stored[name] = type(norm)(norm.dtype, (16,), norm.data[:32])
    model.save(stored)
    convert(model.path, tmp_path / "ckpt", Target(tp=2))
    report = inspect_checkpoint(tmp_path / "ckpt")
    assert (report.problems, report.checked) == ((), True)
    lost = "transformer.layers.1.attention.k_layernorm.weight"
    tensors("rank1.safetensors", lambda held: held.pop(lost))(tmp_path / "ckpt")
    assert inspect_checkpoint(tmp_path / "ckpt").problems == (f"rank1.safetensors: lacks {lost}",)


def test_a_report_tells_ranks_layers_and_tensors(checkpoint: Path) -> None:
    report = inspect_checkpoint(checkpoint)
    assert (report.architecture, report.dtype, report.layers) == ("LlamaForCausalLM", "bfloat16", 3)
    assert [rank.layers for rank in report.ranks] == [2, 2, 1, 1]
    qkv = next(tensor for tensor in report.ranks[3].tensors if tensor.name == QKV)
    assert (qkv.dtype, qkv.shape, qkv.size_bytes) == ("BF16", (64, 64), 8192)
    data = json.loads(json.dumps(report.to_json(tensors=True)))
    assert data["sound"] is True
    assert data["ranks"][0]["tensors"][0]["name"] == "transformer.layers.0.attention.dense.weight"
    assert report.to_json(tensors=False)["ranks"][0]["tensors"] == len(report.ranks[0].tensors)


PROBLEMS: dict[str, tuple[Change, list[str]]] = {
    "a rank is missing": (
        lambda d: (d / "rank1.safetensors").unlink(),
        ["missing: rank1.safetensors"],
    ),
    "a rank too many": (
        lambda d: (d / "rank4.safetensors").write_bytes((d / "rank3.safetensors").read_bytes()),
        ["more rank files than config.json's 4: rank4.safetensors"],
    ),
    "world size": (
        config(mapping__world_size=2),
        ["mapping.world_size is 2, but tp_size 2 × pp_size 2 × cp_size 1 is 4"],
    ),
    "world size of no kind": (
        config(mapping__world_size="4"),
        ["mapping.world_size is '4', not a positive whole number"],
    ),
    "a truncated rank": (
        lambda d: (d / "rank2.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        ["rank2.safetensors: the file is truncated: 24 bytes expected, 9 found"],
    ),
    "layers dropped, as up to 0.18": (
        config(num_hidden_layers=5, mapping__world_size=4),
        ["hold 3 layers (2, 1), but config.json's num_hidden_layers is 5"],
    ),
    "layers on the wrong rank": (
        lambda d: [
            tensors(file, lambda held: [held.pop(n) for n in list(held) if ".layers.1." in n])(d)
            for file in ("rank0.safetensors", "rank1.safetensors")
        ],
        ["hold 2 layers (1, 1), but config.json's num_hidden_layers is 3: TensorRT-LLM up to 0.18"],
    ),
    "a tensor is missing": (
        tensors("rank2.safetensors", lambda held: held.pop(QKV)),
        [f"rank2.safetensors: lacks {QKV}"],
    ),
    "a tensor too many": (
        tensors("rank2.safetensors", lambda held: held.update(ghost=("BF16", (1,)))),
        ["rank2.safetensors: has no use for ghost"],
    ),
    "no output matrix": (
        tensors("rank3.safetensors", lambda held: held.pop("lm_head.weight")),
        ["rank3.safetensors: lacks lm_head.weight"],
    ),
    "qkv rows": (
        tensors("rank0.safetensors", lambda held: held.update({QKV: ("BF16", (32, 64))})),
        [f"rank0.safetensors: shapes do not follow from config.json: {QKV} [32, 64] instead of"],
    ),
    "vocabulary": (
        config(vocab_size=300),
        ["rank0.safetensors: shapes", "vocab_embedding.weight [259, 64] instead of [300, 64]"],
    ),
    "type": (
        config(dtype="float16"),
        ["rank0.safetensors: not F16, as config.json says: ", "(BF16)"],
    ),
    "biases that config.json does not know": (
        config(attn_bias=True),
        ["lacks transformer.layers.0.attention.qkv.bias"],
    ),
    "a number is missing": (
        config(head_size=None),
        ["config.json: head_size = None"],
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_is_wrong_is_named(checkpoint: Path, case: str) -> None:
    change, parts = PROBLEMS[case]
    change(checkpoint)
    report = inspect_checkpoint(checkpoint)
    said = "\n".join(report.problems)
    assert [part for part in parts if part not in said] == []
    assert report.to_json(tensors=False)["sound"] is False


def test_layers_that_add_up_but_lie_elsewhere_than_1_2_looks_for_them(tmp_path: Path) -> None:
    convert(MODELS / "llama31", tmp_path / "ckpt", Target(pp=2))
    first, second = (inspect_checkpoint(tmp_path / "ckpt").ranks[r].tensors for r in (0, 1))
    moved = {t.name: (t.dtype, t.shape) for t in first if ".layers.1." in t.name}
    write_rank(
        tmp_path / "ckpt" / "rank0.safetensors",
        {t.name: (t.dtype, t.shape) for t in first if t.name not in moved},
    )
    write_rank(
        tmp_path / "ckpt" / "rank1.safetensors",
        {t.name: (t.dtype, t.shape) for t in second} | moved,
    )
    assert inspect_checkpoint(tmp_path / "ckpt").problems == (
        "the pipeline ranks hold 1, 2 layers; TensorRT-LLM 1.2 looks for 2, 1",
    )


def test_rotary_buffers_that_upstream_writes_are_no_problem(checkpoint: Path) -> None:
    buffers = {
        "rotary_inv_freq": ("F32", (8,)),
        "embed_positions": ("F32", (1, 256, 16)),
        "embed_positions_for_gpt_attention": ("F32", (1, 4096)),
        "transformer.layers.0.attention.embed_positions": ("F32", (1, 256, 16)),
    }
    tensors("rank0.safetensors", lambda held: held.update(buffers))(checkpoint)
    assert inspect_checkpoint(checkpoint).problems == ()


def test_a_tied_checkpoint_without_output_matrix_is_sound_where_loaders_accept_it(
    tmp_path: Path,
) -> None:
    convert(MODELS / "llama_tied", tmp_path / "ckpt")
    tensors("rank0.safetensors", lambda held: held.pop("lm_head.weight"))(tmp_path / "ckpt")
    assert inspect_checkpoint(tmp_path / "ckpt").problems == ()
    config(tie_word_embeddings=False)(tmp_path / "ckpt")
    assert inspect_checkpoint(tmp_path / "ckpt").problems == (
        "rank0.safetensors: lacks lm_head.weight",
    )


def test_other_architectures_and_quantised_ones_are_not_held_to_llamas_shapes(
    checkpoint: Path,
) -> None:
    tensors("rank0.safetensors", lambda held: held.update(ghost=("I8", (3,))))(checkpoint)
    config(architecture="FalconForCausalLM")(checkpoint)
    report = inspect_checkpoint(checkpoint)
    assert (report.problems, report.checked) == ((), False)
    config(architecture="LlamaForCausalLM", quantization__quant_algo="FP8")(checkpoint)
    report = inspect_checkpoint(checkpoint)
    assert (report.problems, report.checked, report.quantised) == ((), False, "FP8")


BASE = [
    "world_size",
    "gpus_per_node",
    "cp_size",
    "tp_size",
    "pp_size",
    "moe_tp_size",
    "moe_ep_size",
]
NEWER = ["moe_cluster_size", "attn_tp_size", "attn_cp_size"]
NEWEST = ["cp_config", "enable_attention_dp", "enable_lm_head_tp_in_adp"]


@pytest.mark.parametrize(
    ("keys", "release"),
    [
        (["world_size", "tp_size", "pp_size"], "any"),
        (BASE, "0.16"),
        ([*BASE, *NEWER, "auto_parallel"], "1.0"),
        ([*BASE, *NEWER, *NEWEST, "auto_parallel"], "1.1"),
        ([*BASE, *NEWER, *NEWEST], "1.2"),
        ([*BASE, "dwdp_size"], "unknown"),
    ],
)
def test_the_keys_of_the_mapping_tell_the_release(keys: list[str], release: str) -> None:
    assert release_of(dict.fromkeys(keys, 1)) == release


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"architectures": ["LlamaForCausalLM"]}', "Hugging Face model.*trtforge convert"),
        ("{}", "no 'architecture' and 'mapping'"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
        ('{"architecture": "x", "mapping": []}', "no 'architecture' and 'mapping'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(NotACheckpointError, match=problem) as refusal:
        inspect_checkpoint(tmp_path)
    assert refusal.value.remedy


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match=re.escape("no config.json")):
        inspect_checkpoint(tmp_path / "none")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "values",
    [
        {"mapping__tp_size": 10**15},
        {"mapping__pp_size": 10**15, "mapping__world_size": 10**15},
        {"num_hidden_layers": 10**15},
        {"mapping__tp_size": 0},
        {"mapping__pp_size": -1},
        {"num_hidden_layers": True},
        {"vocab_size": 1e9},
        {"quantization": []},
    ],
)
def test_absurd_numbers_are_problems_and_no_loops(checkpoint: Path, values: Any) -> None:
    config(**values)(checkpoint)
    try:
        report = inspect_checkpoint(checkpoint)
    except InputError as error:
        assert error.remedy  # noqa: PT017 (either outcome is right)
        return
    assert report.problems or values == {"quantization": []}
