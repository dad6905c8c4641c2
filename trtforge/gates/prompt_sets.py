"""What trtforge puts to an engine: prompts of several kinds, a long one, and a text to read.

The prompts were written for this; the text is the first five chapters of "Alice's Adventures in
Wonderland" (Lewis Carroll, 1865, in the public domain). Most models know it by heart, which is no
harm: it is not the model that is judged, but whether an engine reads it as the model does.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from trtforge.spec import BuildSpec
from trtforge.tokenizer import ModelTokenizer

LONGEST_PROMPT = 8192
"""Tokens of the long prompt at most: beyond, the original model in fp32 takes minutes."""

_CONTEXT_TOKENS = 8
_CHARACTERS_PER_TOKEN = 12
# For models without a tokenizer.
_RANDOM_PROMPTS = 3
_RANDOM_TOKENS = 12
_LONG = "long-context"


@dataclass(frozen=True)
class GatePrompt:
    """One prompt, as token ids.

    Attributes:
        source: Where it is from: `gates.prompts.0`, `general.2`, `long-context`.
        alone: Whether it is answered alone too, not only in a batch.
    """

    source: str
    ids: list[int]
    alone: bool = True


@dataclass(frozen=True)
class Text:
    """Tokens to read: after `context` each of `read` is compared with what the engine expected."""

    context: list[int]
    read: list[int]


def gate_prompts(
    spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int
) -> list[GatePrompt]:
    """The prompts of a spec: its own (whether they fit or not), and those of the sets that fit.

    A model without a tokenizer gets a few of random ids instead, and the long one.
    """
    room = _room(spec)
    if tokenizer is None:
        length = max(1, min(_RANDOM_TOKENS, room))
        prompts = [
            GatePrompt(f"random.{n}", _random_ids(n, length, vocab_size))
            for n in range(_RANDOM_PROMPTS)
        ]
    else:
        prompts = [
            GatePrompt(f"gates.prompts.{n}", tokenizer.encode_question(text))
            for n, text in enumerate(spec.gates.prompts)
        ]
        for name in spec.gates.prompt_sets:
            prompts += _fitting(name, tokenizer, room) if name != _LONG else []
    if _LONG in spec.gates.prompt_sets and room > 0:
        prompts.append(GatePrompt(_LONG, _long_ids(tokenizer, vocab_size, room)))
    return prompts


def gate_text(spec: BuildSpec, tokenizer: ModelTokenizer | None, vocab_size: int) -> Text | None:
    """The text to read, as far as it fits the engine; None where none is asked for."""
    engine = spec.engine
    context = min(_CONTEXT_TOKENS, engine.max_input_len, engine.max_seq_len - 1)
    # Engines that cannot be made to read token by token get it as prompts.
    room = min(engine.max_input_len + 1, engine.max_seq_len) - context
    count = min(spec.gates.text_tokens, room)
    if count < 1:
        return None
    if tokenizer is None:
        ids = _random_ids(_RANDOM_PROMPTS, context + count, vocab_size)
    else:
        # Another part than the long prompt begins with.
        text = _text()
        ids = _first_ids(tokenizer, text[len(text) // 2 :], context + count)
    return Text(ids[:context], ids[context:])


def _room(spec: BuildSpec) -> int:
    engine = spec.engine
    return min(engine.max_input_len, engine.max_seq_len - spec.gates.new_tokens)


def _fitting(name: str, tokenizer: ModelTokenizer, room: int) -> list[GatePrompt]:
    found: list[GatePrompt] = []
    for number, text in enumerate(_prompts(name)):
        ids = tokenizer.encode_question(text)
        if 0 < len(ids) <= room:
            found.append(GatePrompt(f"{name}.{number}", ids, alone=not found))
    return found


def _long_ids(tokenizer: ModelTokenizer | None, vocab_size: int, room: int) -> list[int]:
    length = min(room, LONGEST_PROMPT)
    if tokenizer is None:
        return _random_ids(_RANDOM_PROMPTS + 1, length, vocab_size)
    return _first_ids(tokenizer, _text(), length)


def _first_ids(tokenizer: ModelTokenizer, text: str, length: int) -> list[int]:
    """The first `length` tokens of a text, again from its beginning where it has fewer."""
    # No tokenizer needs all of it for a few tokens.
    ids = tokenizer.encode(text[: length * _CHARACTERS_PER_TOKEN])
    return (ids * (length // max(1, len(ids)) + 1))[:length]


def _random_ids(seed: int, length: int, vocab_size: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(vocab_size) for _ in range(length)]


@cache
def _prompts(name: str) -> tuple[str, ...]:
    data = files("trtforge.gates").joinpath(f"prompts/{name}.json").read_text(encoding="utf-8")
    return tuple(json.loads(data))


@cache
def _text() -> str:
    return files("trtforge.gates").joinpath("prompts/text.txt").read_text(encoding="utf-8")
