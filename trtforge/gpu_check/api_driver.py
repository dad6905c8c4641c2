"""Driver: does the TensorRT-LLM of this interpreter have the names that trtforge calls?

It imports tensorrt_llm; the standard library does the rest.

Request:  expected ({"module:Name.name": [parameter, ...]}), from `expectations`
Result:   names [{name, found, missing, detail}], parser (rows of trtllm-build's own argparse
          parser, in the shape of our tables; or null), parser_detail
"""

import argparse
import importlib
import inspect
import json
import re
import sys
from typing import Any

from trtforge.engines.driver_main import Report, drive


def examine(request: dict[str, Any], report: Report) -> dict[str, Any]:
    report("importing tensorrt_llm", 0, None)
    names = [look_up(name, wanted) for name, wanted in request["expected"].items()]
    try:
        parser, detail = build_parser_rows(), ""
    except Exception as error:
        parser, detail = None, f"{type(error).__name__}: {error}"
    return {"names": names, "parser": parser, "parser_detail": detail}


def look_up(name: str, wanted: "list[str]") -> dict[str, Any]:
    """One `module:Name.name`. `missing` is null where the parameters cannot be told."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        return _answer(name, False, wanted, f"{type(error).__name__}: {error}")
    known, open_ended, said = _parameters(found)
    if known is None:
        return _answer(name, True, None, "its parameters cannot be told")
    missing = [parameter for parameter in wanted if parameter not in known]
    if missing and open_ended:
        return _answer(name, True, None, f"takes **kwargs; not named: {', '.join(missing)}")
    return _answer(name, True, missing, said)


def _parameters(found: Any) -> "tuple[set[str] | None, bool, str]":
    """Names, whether it takes any others too, and its signature."""
    fields = getattr(found, "model_fields", None)
    if isinstance(fields, dict):
        return set(fields), False, f"fields: {', '.join(sorted(fields))}"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        # Bindings of C++ tell their parameters in their documentation only.
        text = getattr(found, "__doc__", None) or ""
        names = set(re.findall(r"(\w+)\s*:", text))
        return (names or None), False, text[:600]
    parameters = signature.parameters.values()
    bound = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return bound, any(p.kind is p.VAR_KEYWORD for p in parameters), str(signature)[:600]


def _answer(name: str, found: bool, missing: "list[str] | None", detail: str) -> dict[str, Any]:
    return {"name": name, "found": found, "missing": missing, "detail": detail}


class _CaughtError(Exception):
    """The parser was asked to parse."""


def build_parser_rows() -> "list[dict[str, Any]]":
    """The rows of `trtllm-build`'s own parser, taken the moment it would parse."""
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        caught.append(parser)
        raise _CaughtError

    build = importlib.import_module("tensorrt_llm.commands.build")
    patched: Any = argparse.ArgumentParser
    original, arguments = patched.parse_args, sys.argv
    patched.parse_args, sys.argv = catch, ["trtllm-build"]
    try:
        build.main()
    except _CaughtError:
        pass
    finally:
        patched.parse_args, sys.argv = original, arguments
    return [_row(action) for action in caught[0]._actions if action.dest != "help"]


def _row(action: argparse.Action) -> dict[str, Any]:
    kind = getattr(action.type, "__name__", None)
    if kind is None and type(action).__name__ == "_StoreAction":
        kind = "str"
    return {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "type": kind,
        "default": _plain(action.default),
        "choices": [str(choice) for choice in action.choices] if action.choices else None,
        "nargs": action.nargs,
        "kind": type(action).__name__,
    }


def _plain(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value


if __name__ == "__main__":
    drive(examine)
