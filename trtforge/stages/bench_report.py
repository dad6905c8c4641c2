"""The files that tell of a benchmark, and what is known of an engine for its page."""

import re
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.benchmark import page
from trtforge.benchmark.metrics import Measurement
from trtforge.benchmark.previous import Previous
from trtforge.benchmark.report import (
    PAGE_FILE,
    REPORT_FILE,
    SHORT_FILE,
    BenchmarkReport,
)
from trtforge.benchmark.sample import RAW_FILE, Sample, read_samples, write_samples
from trtforge.engines.base import Toolchain
from trtforge.errors import InputError, ServiceError
from trtforge.spec import BuildSpec
from trtforge.stages.stage import Workshop
from trtforge.store import AliasName, Manifest
from trtforge.store.records import now, parse_record

_LIMITS = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
Card = list[tuple[str, str]]
_RUN_ID = re.compile(r"bench-[0-9TZ]+-([0-9a-f]{8})-[0-9a-f]{6}")


class NoReportError(InputError):
    """There is no benchmark of this name, or it left no raw data."""


def engine_rows(spec: BuildSpec, model: str, source: str, toolchain: Toolchain) -> Card:
    """What is known of an engine before it has an id."""
    limits = ", ".join(f"{name} {getattr(spec.engine, name)}" for name in _LIMITS)
    rows = [
        ("Model", f"{model} from {source}"),
        ("Backend", f"{toolchain.backend} {toolchain.backend_version}"),
        ("Runs on", toolchain.gpu_name or f"CPU {toolchain.cpu}"),
        ("Ranks", str(spec.ranks)),
        ("Weights", spec.checkpoint.dtype),
        ("Built for", limits),
    ]
    for name, value in (
        ("TensorRT", toolchain.tensorrt_version),
        ("CUDA", toolchain.cuda_version),
        ("Driver", toolchain.driver_version),
    ):
        if value:
            rows.append((name, value))
    return rows


def manifest_rows(manifest: Manifest) -> Card:
    """What is known of a published engine."""
    core = manifest.core
    spec = BuildSpec.model_validate(core.spec)
    return [
        ("Engine", manifest.engine_id),
        *engine_rows(spec, core.model.name, core.model.source, core.built_with),
        ("Published", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC"),
    ]


def engine_before(
    shop: Workshop, spec: BuildSpec, model: str, toolchain: Toolchain, than: str = ""
) -> Previous | None:
    """The engine that the first alias of the spec points at now; None: none, or it is `than`."""
    for alias in spec.publish.aliases:
        name = AliasName(model, toolchain.device_name, toolchain.backend, alias)
        try:
            record = shop.store.get_alias(name)
            if record is None:
                continue
            if record.engine_id == than:
                return None
            return _as_measured(shop.store.get_manifest(record.engine_id), alias)
        except (ServiceError, InputError) as error:
            return Previous("?", alias, why_not=f"it cannot be read ({error})")
    return None


def _as_measured(manifest: Manifest, alias: str) -> Previous:
    told: Any = (manifest.benchmark or {}).get("engine") or ()
    if not told:
        return Previous(manifest.engine_id, alias, why_not="its benchmark was not kept")
    measured = tuple(Measurement.from_json(data) for data in told)
    return Previous(manifest.engine_id, alias, measured)


def write_evidence(
    directory: Path,
    report: BenchmarkReport,
    samples: Sequence[Sample],
    *,
    title: str,
    card: Sequence[tuple[str, str]],
    previous: Previous | None,
) -> None:
    """Write raw data, report, page and short form."""
    write_samples(directory / RAW_FILE, samples)
    (directory / REPORT_FILE).write_bytes(report.to_bytes())
    summary, _ = report.again(samples)
    text = page.markdown(report, summary, title=title, previous=previous)
    (directory / SHORT_FILE).write_text(text, encoding="utf-8")
    html = page.render(report, samples, title=title, card=card, previous=previous)
    (directory / PAGE_FILE).write_text(html, encoding="utf-8")


def page_title(manifest: Manifest) -> str:
    """What the page of a published engine is called."""
    return f"{manifest.core.model.name} on {manifest.core.built_with.gpu_name or 'CPU'}"


def new_run_id(engine_id: str) -> str:
    """A name for a run of `trtforge bench`: when, and of which engine."""
    return f"bench-{now():%Y%m%dT%H%M%SZ}-{engine_id[:8]}-{uuid.uuid4().hex[:6]}"


def engine_of_run(shop: Workshop, run_id: str) -> Manifest | None:
    """The engine that a run measured; None where it is gone, or the name does not tell."""
    named = _RUN_ID.fullmatch(run_id)
    try:
        return shop.store.get_manifest(named[1]) if named else None
    except (InputError, ServiceError):
        return None


def read_run(shop: Workshop, run_id: str) -> tuple[BenchmarkReport, list[Sample]] | None:
    """The report and raw data of a run of `trtforge bench`; None: there is no such run."""
    report, raw = (shop.store.get_run_file(run_id, name) for name in (REPORT_FILE, RAW_FILE))
    if report is None or raw is None:
        return None
    where = f"run {run_id}"
    samples = read_samples(raw.decode().splitlines(), f"{RAW_FILE} of {where}")
    return parse_record(BenchmarkReport, report, f"{REPORT_FILE} of {where}"), samples


def read_engine(shop: Workshop, manifest: Manifest) -> tuple[BenchmarkReport, list[Sample]]:
    """The report and raw data that an engine was published with.

    Raises:
        NoReportError: It was published without.
    """
    refs = {ref.path: ref for ref in manifest.evidence}
    if not {REPORT_FILE, RAW_FILE} <= set(refs):
        raise NoReportError(
            "the engine was published without its benchmark's raw data",
            field="ENGINE",
            value=manifest.engine_id[:12],
            remedy="Measure it again: trtforge bench ENGINE",
        )
    with tempfile.TemporaryDirectory(prefix="trtforge-report-") as scratch_name:
        scratch = Path(scratch_name)
        for name in (REPORT_FILE, RAW_FILE):
            shop.store.get_file(refs[name].sha256, refs[name].size_bytes, scratch / name)
        where = f"engine {manifest.engine_id[:12]}"
        report = parse_record(
            BenchmarkReport, (scratch / REPORT_FILE).read_bytes(), f"{REPORT_FILE} of {where}"
        )
        with (scratch / RAW_FILE).open(encoding="utf-8") as lines:
            return report, read_samples(lines, f"{RAW_FILE} of {where}")
