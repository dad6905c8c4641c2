"""The engine card: what a person wants to know of an engine, as markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.benchmark.metrics import FORMULAS, Measurement
from trtforge.engines.base import Toolchain
from trtforge.engines.standin import STANDIN_NOTICE, is_standin
from trtforge.files import FileRef
from trtforge.store import Manifest
from trtforge.store.gates import failed_gates

_LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")


@dataclass(frozen=True)
class StageLine:
    """One stage of the build that made the card: how it ended, in `seconds`.

    `log` is the address (`s3://…`) of the toolchain's log, from the run that made the stage.
    """

    stage: str
    hit: bool
    seconds: float
    detail: str
    log: str = ""


def engine_card(
    manifest: Manifest,
    *,
    location: str,
    aliases: Sequence[str] = (),
    answer: Mapping[str, Any] | None = None,
    stages: Sequence[StageLine] = (),
    gates: str = "",
) -> str:
    """Markdown about one engine.

    Args:
        location: `s3://…` of the manifest.
        aliases: Names that point at it.
        answer: What the published copy answered (the publish stage's `answer`).
        stages: How this build went; empty when the card is shown later.
        gates: How it stands with its gates now (`GateState.describe`), where it failed one.
    """
    core = manifest.core
    toolchain = core.built_with
    parts = [
        f"# Engine {manifest.engine_id[:12]}",
        *([STANDIN_NOTICE] if is_standin(toolchain.backend_version) else []),
        _table(
            ("", ""),
            [
                ("Engine id", f"`{manifest.engine_id}`"),
                ("Aliases", ", ".join(f"`{name}`" for name in aliases) or "none"),
                ("Model", f"{core.model.name} from `{core.model.source}`"),
                *([("Commit", f"`{core.model.revision}`")] if core.model.revision else []),
                ("Licence", core.model.licence or _licence_file(core.files)),
                ("Backend", f"{toolchain.backend} {toolchain.backend_version}"),
                ("Valid on", toolchain.gpu_name or f"CPU {toolchain.cpu}"),
                *_toolchain(toolchain),
                ("Gates", f"**{gates}**" if gates else _gates(core.gates)),
                ("Size", f"{len(core.files)} files, {core.size_bytes / 1e6:.1f} MB"),
                ("Published", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"),
            ],
        ),
        # Not in the table: it is too long for a cell, and a block of its own can be scrolled.
        f"```text\n{location}\n```",
        "## Asked for, and in effect",
        _asked_and_effective(core.spec, core.config),
    ]
    if manifest.benchmark:
        parts += ["## Benchmark", *_benchmark(manifest.benchmark)]
    if stages:
        parts += ["## How it was made", _stages(stages)]
    if answer:
        parts += [
            "## What the published copy answers",
            f"**{answer['prompt']}**",
            "\n".join(f"> {line}" for line in str(answer["text"]).strip().splitlines()),
            f"{answer['tokens']} tokens in {answer['seconds']:.1f} s, from a copy downloaded to an "
            "empty directory.",
        ]
    return "\n\n".join(parts) + "\n"


def benchmark_rows(benchmark: Mapping[str, Any]) -> list[dict[str, str]]:
    """The benchmark table, engine beside eager, one row per concurrency.

    What counts most is first: a narrow window of the Prefect UI shows only the first columns.
    """
    rows = []
    for mine, theirs in zip(benchmark["engine"], benchmark["eager"], strict=True):
        engine, eager = Measurement.from_json(mine), Measurement.from_json(theirs)
        rows.append(
            {
                "Concurrency": str(engine.concurrency),
                "Output tokens/s": f"{engine.output_tokens_per_s:.1f}",
                "eager tokens/s": f"{eager.output_tokens_per_s:.1f}",
                "Ratio": f"{engine.output_tokens_per_s / eager.output_tokens_per_s:.2f}×",
                "TTFT": f"{engine.ttft_s * 1e3:.0f} ms",
                "eager TTFT": f"{eager.ttft_s * 1e3:.0f} ms",
                "ITL": f"{engine.itl_s * 1e3:.1f} ms",
                "eager ITL": f"{eager.itl_s * 1e3:.1f} ms",
            }
        )
    return rows


def _toolchain(toolchain: Toolchain) -> list[tuple[str, str]]:
    """What is known of the toolchain beside the backend and the device."""
    rows = (
        ("TensorRT", toolchain.tensorrt_version),
        ("Compute capability", toolchain.compute_capability),
        ("CUDA", toolchain.cuda_version),
        ("Driver", toolchain.driver_version),
        ("System", f"{toolchain.os} {toolchain.arch}".strip()),
        ("Image", toolchain.image_digest and f"`{toolchain.image_digest}`"),
    )
    return [(name, value) for name, value in rows if value]


def _gates(gates: Mapping[str, Any]) -> str:
    failed = failed_gates(gates)
    if failed:
        return f"**{', '.join(failed)} failed**"
    passed = [name for name, told in gates.items() if isinstance(told, dict) and told.get("passed")]
    return f"{', '.join(passed)} passed" if passed else "none"


def _licence_file(files: Sequence[FileRef]) -> str:
    names = [f.path for f in files if f.path.upper().startswith(("LICENSE", "LICENCE"))]
    return f"see {names[0]}" if names else "not stated by the source"


def _benchmark(benchmark: Mapping[str, Any]) -> list[str]:
    first = Measurement.from_json(benchmark["engine"][0])
    machine = benchmark["machine"]
    rows = benchmark_rows(benchmark)
    place = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    runs = "1 run" if first.repeats == 1 else f"{first.repeats} runs"
    return [
        f"{first.input_tokens} tokens in, {first.output_tokens} out, greedy, in process, median of "
        f"{runs} on {place} ({machine['backend']}). *Eager* is the original model in PyTorch, same "
        "weights, same run.",
        _table(tuple(rows[0]), [tuple(row.values()) for row in rows]),
        "; ".join(f"{name} = {formula}" for name, formula in FORMULAS.items()) + ".",
    ]


def _asked_and_effective(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    engine = spec.get("engine", {})
    rows = [
        (f"`{name}`", str(engine.get(name, "—")), str(config.get(name, "—"))) for name in _LIMITS
    ]
    asked_device = engine.get("options", {}).get("device", "auto")
    rows.append(("`device`", str(asked_device), str(config.get("device", "—"))))
    shown = {*_LIMITS, "device", "graphs"}
    rows += [(f"`{k}`", "—", str(v)) for k, v in sorted(config.items()) if k not in shown]
    return _table(("Setting", "Asked for", "In effect"), rows)


def _stages(stages: Sequence[StageLine]) -> str:
    table = _table(
        ("Stage", "", "Time", "What"),
        [
            (line.stage, "found" if line.hit else "made", f"{line.seconds:.1f} s", line.detail)
            for line in stages
        ],
    )
    # Below the table: addresses are long, and a table would be as wide as they are.
    logs = [f"- log of {line.stage}: `{line.log}`" for line in stages if line.log]
    return "\n".join([table, "", *logs]) if logs else table


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor its row."""
    return " ".join(text.split()).replace("|", r"\|")
