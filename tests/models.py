"""Tiny models as the Hub would serve them, written without torch in a few milliseconds.

The weights are random but not degenerate: greedy output differs from prompt to prompt.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

HIDDEN = 64
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
INTERMEDIATE = 176
VOCAB = 512
MAX_POSITIONS = 512

BOS, EOS, USER, ASSISTANT, END = "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, USER, ASSISTANT, END)
# Their token ids are their places in SPECIAL_TOKENS.
BOS_ID, EOS_ID, END_ID = 0, 1, 4

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] + '<|end|>' }}
    {%- else %}
        {{- '<|assistant|>' + message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

_CORPUS = (
    "How do I count to nine in French? One counts un, deux, trois, quatre, cinq, six, sept, huit, "
    "neuf.",
    "Name three things that float on water. Wood, cork and ice float on water; stones do not.",
    "The capital of Japan is Tokyo. The capital of France is Paris. What is the capital of Italy?",
    "An engine is valid for one type of machine only, and the weights of a model are larger still.",
    "Benchmarks measure the time to the first token, and the time between tokens after that.",
)


def write_tiny_model(
    directory: Path, *, layers: int = 2, with_tokenizer: bool = True, seed: int = 0
) -> Path:
    """Write a random LLaMA (tied embeddings, bfloat16) as a Hugging Face model directory.

    The same arguments give the same bytes. Returns `directory`, which is made if need be.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", _config(layers))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": BOS_ID, "eos_token_id": [EOS_ID, END_ID], "do_sample": False},
    )
    _write_weights(directory / "model.safetensors", layers, seed)
    (directory / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    if with_tokenizer:
        write_tiny_tokenizer(directory)
    return directory


def write_tiny_tokenizer(directory: Path) -> Path:
    """Write a byte-level BPE tokenizer with a chat template; any text survives a round trip."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_POSITIONS,
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


def _config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "dtype": "bfloat16",
        "eos_token_id": EOS_ID,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": None,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def _shapes(layers: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for number in range(layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{layer}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)


def _write_weights(path: Path, layers: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in _shapes(layers):
        if len(shape) == 1:
            values = source.normal(1.0, 0.1, shape)
        else:
            # The layers outweigh the embedding: with tied weights every answer would otherwise be
            # an echo of its prompt's last token.
            values = source.normal(0.0, 0.05 if "embed" in name else 0.15, shape)
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    # transformers refuses files that do not say which framework they are for.
    save_file(tensors, path, metadata={"format": "pt"})


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
