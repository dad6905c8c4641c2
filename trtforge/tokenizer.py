"""Text to token ids and back, with the model's own tokenizer and chat template; no torch.

Uses `tokenizer.json` (the `tokenizers` library) and the Jinja chat template as Hugging Face
defines it: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RawTokenizer

from trtforge.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class TokenizerError(InputError):
    """The tokenizer or the chat template of a model cannot be used."""


class ModelTokenizer:
    """The tokenizer of one model directory; `open_tokenizer` makes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._raw = RawTokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"tokenizer.json cannot be read ({error})",
                field="model.source",
                value=str(directory),
                remedy="Use a model whose tokenizer was saved by the tokenizers library",
            ) from error
        self._config = _read_json(directory / "tokenizer_config.json")
        self._template = _chat_template(directory, self._config)
        generation = _read_json(directory / "generation_config.json")
        self.stop_ids = _as_list(generation.get("eos_token_id")) or self._eos_from_config()

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, special tokens included as the tokenizer is set up to."""
        ids: list[int] = self._raw.encode(text).ids
        return ids

    def encode_question(self, text: str) -> list[int]:
        """Token ids of `text` as a user's turn in the chat template; plain where there is none."""
        if self._template is None:
            return self.encode(text)
        rendered = self._render([{"role": "user", "content": text}])
        ids: list[int] = self._raw.encode(rendered, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._raw.decode(ids, skip_special_tokens=True)
        return text

    def _render(self, messages: list[dict[str, str]]) -> str:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        special = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            # A token the model lacks stays undefined: None would be rendered as "None".
            if (text := _token_text(self._config.get(name))) is not None
        }
        try:
            return environment.from_string(self._template or "").render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **special
            )
        except Exception as error:  # a template can raise whatever Python can
            raise TokenizerError(
                f"the chat template failed ({type(error).__name__}: {error})",
                field="model.source",
                value=str(self._directory),
                remedy="Mend the model's chat_template",
            ) from error

    def _eos_from_config(self) -> list[int]:
        text = _token_text(self._config.get("eos_token"))
        token_id = self._raw.token_to_id(text) if text else None
        return [] if token_id is None else [token_id]


def open_tokenizer(directory: Path) -> ModelTokenizer | None:
    """The tokenizer of a model or engine directory; None when it has no `tokenizer.json`."""
    return ModelTokenizer(directory) if (directory / "tokenizer.json").is_file() else None


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"{file.name} is not UTF-8 ({error})",
                field="model.source",
                value=str(file),
                remedy="Fetch the file again",
            ) from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template or _read_json(directory / "chat_template.json").get("chat_template")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(
            f"{path.name} is not JSON ({error})",
            field="model.source",
            value=str(path),
            remedy="Fetch the file again",
        ) from error
    return data if isinstance(data, dict) else {}


def _token_text(token: object) -> str | None:
    """A special token is a string, or an object with `content` (an AddedToken)."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _as_list(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [v for v in value if isinstance(v, int)] if isinstance(value, list) else []


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)
