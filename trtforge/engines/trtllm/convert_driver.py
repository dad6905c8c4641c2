"""Driver: convert a model with the release's own `convert_checkpoint.py`.

Request:  target (the release line it is for: 1.2), script (relative to the sources, e.g.
          `examples/models/core/gpt/convert_checkpoint.py`), arguments, out_dir (which the
          arguments name; must not exist), ranks
Result:   files (names below out_dir), script (its path), verified (whether the examples say that
          they are of this release), converting_s, saving_s (as the script tells them, over all
          ranks; null where it does not), warnings

The exit code is not trusted: the scripts end with 0 whether or not every rank was written, and
write config.json before the last of them. Log lines and failures: upstream's
`examples/*/convert_checkpoint.py` of 0.16 and 1.x [not run].
"""

import json
import os
import re
import runpy
import struct
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive
from trtforge.engines.trtllm import mpi
from trtforge.engines.trtllm.convert_failures import recognise
from trtforge.engines.trtllm.examples import EXAMPLES_VARIABLE, candidate_roots
from trtforge.engines.trtllm.installed import installed_release
from trtforge.engines.trtllm.run_failures import unknown

_MAX_HEADER_BYTES = 100 << 20
_LOG_LINES = 4000
_CONVERTED = re.compile(r"Total time of reading and converting:?\s*([\d.]+)\s*s")
_SAVED = re.compile(r"Total time of saving checkpoint:?\s*([\d.]+)\s*s")


def convert(request: dict[str, Any], report: Report) -> dict[str, Any]:
    version, _ = installed_release()
    if not version.startswith(f"{request['target']}."):
        raise DriverError(
            "wrong-target",
            f"tensorrt_llm {version} is installed, and the checkpoint is to be for "
            f"{request['target']}",
            f"Set checkpoint.target to {'.'.join(version.split('.')[:2])}, or point "
            "TRTFORGE_TRTLLM_PYTHON at an environment with that release",
        )
    script, verified = find_script(request["script"], version)
    out_dir, ranks = Path(request["out_dir"]), int(request["ranks"])
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    report("converting", 0, ranks)
    saved = 0

    def on_line(line: str) -> None:
        nonlocal saved
        if _SAVED.search(line):
            saved += 1
            report("converting", min(saved, ranks), ranks)

    exit_code, log = _attend([sys.executable, str(script), *request["arguments"]], on_line)
    if exit_code != 0:
        raise recognise(log) or unknown(log, exit_code)
    try:
        files = require_complete(out_dir, ranks)
    except DriverError as error:
        # With exit code 0 all the same; the log often knows better.
        raise recognise(log) or error from error
    text = "\n".join(log)
    return {
        "files": files,
        "script": str(script),
        "verified": verified,
        "converting_s": _sum(_CONVERTED, text),
        "saving_s": _sum(_SAVED, text),
        "warnings": []
        if verified
        else [f"the examples in {script.parent} do not say which release they are of"],
    }


def find_script(relative: str, version: str) -> "tuple[Path, bool]":
    """The script, and whether the sources it is part of say that they are of this release.

    Raises:
        DriverError: `no-examples`, `wrong-examples`.
    """
    wanted = PurePosixPath(relative)
    looked = candidate_roots()
    for root in looked:
        script = root / wanted
        if not script.is_file():
            # The folders moved in 0.20 and again within 1.x: the converter's own is what counts.
            found = sorted((root / "examples").glob(f"**/{wanted.parent.name}/{wanted.name}"))
            if len(found) != 1:
                continue
            script = found[0]
        told = _version_of_sources(root)
        if told is not None and told != version:
            raise DriverError(
                "wrong-examples",
                f"the examples in {root} are of TensorRT-LLM {told}, installed is {version}",
                f"Point {EXAMPLES_VARIABLE} at those of {version}: the scripts use private names "
                "of their own release",
            )
        return script.resolve(), told is not None
    raise DriverError(
        "no-examples",
        f"there is no {relative} in {', '.join(map(str, looked))}",
        f"The wheel has no examples: use NVIDIA's release image, or check out the tag v{version} "
        f"of NVIDIA/TensorRT-LLM and set {EXAMPLES_VARIABLE} to it",
    )


def require_complete(out_dir: Path, ranks: int) -> "list[str]":
    """The checkpoint's files, when it has every one and every one is whole.

    Raises:
        DriverError: `incomplete-checkpoint`.
    """
    try:
        config = json.loads((out_dir / "config.json").read_text(encoding="utf-8"))
        world_size = config["mapping"]["world_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _incomplete(f"config.json is missing or unreadable ({error})") from error
    if world_size != ranks:
        raise _incomplete(f"config.json says {world_size} ranks instead of {ranks}")
    names = [f"rank{rank}.safetensors" for rank in range(ranks)]
    for name in names:
        complaint = _complaint(out_dir / name)
        if complaint:
            raise _incomplete(f"{name} {complaint}")
    return ["config.json", *names]


def _complaint(path: Path) -> str:
    """What is wrong with a safetensors file, by its header and its size; empty when nothing is."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length_bytes = file.read(8)
            if len(length_bytes) < 8:
                return "is empty or cut off"
            (length,) = struct.unpack("<Q", length_bytes)
            if length > min(size, _MAX_HEADER_BYTES):
                return "is cut off within its header"
            header = json.loads(file.read(length))
    except OSError:
        return "is missing"
    except ValueError:
        return "has no readable header"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if not ends:
        return "has no tensors"
    if 8 + length + max(ends) != size:
        return f"has {size} bytes instead of {8 + length + max(ends)}"
    return ""


def _incomplete(problem: str) -> DriverError:
    return DriverError(
        "incomplete-checkpoint",
        f"the script ended well but its checkpoint is not whole: {problem}",
        "See the log; a full disk is a frequent cause",
    )


def _version_of_sources(root: Path) -> "str | None":
    path = root / "tensorrt_llm" / "version.py"
    if not path.is_file():
        path = root / "version.py"
    try:
        return str(runpy.run_path(str(path))["__version__"])
    except (OSError, KeyError):
        return None


def _attend(command: "list[str]", on_line: Any) -> "tuple[int, list[str]]":
    environment = mpi.clean_environment(os.environ)
    # Everything is local, and no code is to come with it.
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1")
    log: list[str] = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            log.append(line.rstrip("\n"))
            del log[:-_LOG_LINES]
            on_line(line)
    return process.returncode, log


def _sum(pattern: "re.Pattern[str]", text: str) -> "float | None":
    seconds = [float(match) for match in pattern.findall(text)]
    return sum(seconds) if seconds else None


if __name__ == "__main__":
    drive(convert)
