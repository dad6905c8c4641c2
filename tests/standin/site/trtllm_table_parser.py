"""The parser of a release's `trtllm-build`, from its option table alone.

It knows nothing of how trtforge makes a command: what it takes, upstream's own parser takes.
"""

import argparse
import json
from pathlib import Path

_TABLES = Path(__file__).resolve().parents[3] / "trtforge" / "engines" / "trtllm" / "tables"


def table_of(version):
    if version.startswith("1.2"):
        return "1.2"
    return "1.0" if version.startswith("1.") else "0.16"


def make_parser(version, without=()):
    """The parser of that release; `without`: options it does not know."""
    parser = argparse.ArgumentParser(prog="trtllm-build")
    for row in json.loads((_TABLES / f"{table_of(version)}.json").read_text()):
        if row["dest"] in without:
            continue
        settings = {"dest": row["dest"], "default": row["default"]}
        if row["default"] == "==SUPPRESS==":
            settings["default"] = argparse.SUPPRESS
        if row["kind"] == "_StoreTrueAction":
            parser.add_argument(*row["flags"], action="store_true", dest=row["dest"])
            continue
        if row["type"] == "KVCacheType":
            settings["type"] = kv_cache_type
        elif row["type"] == "int":
            settings["type"] = int
        if row["choices"]:
            settings["choices"] = row["choices"]
        if row["nargs"]:
            settings["nargs"] = row["nargs"]
        parser.add_argument(*row["flags"], **settings)
    return parser


def kv_cache_type(text):
    if text.lower() not in ("continuous", "paged", "disabled"):
        raise ValueError(text)
    return text.lower()
