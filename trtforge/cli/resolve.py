"""`trtforge resolve`: the engine for a model on this machine, or on a described one."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.listing import age
from trtforge.cli.output import AsJson, err, open_workshop, print_json, say
from trtforge.engines.gpu import GpuModel
from trtforge.engines.machine import Machine, Runtime, local_machine
from trtforge.errors import BuildError, InputError

if TYPE_CHECKING:
    from trtforge.stages.stage import Workshop
    from trtforge.store.resolve import Candidate, Resolution

_NEAR_MISSES_SHOWN = 10


class MachineDescriptionError(InputError):
    """The options that describe a machine do not describe one."""


def resolve(
    model: Annotated[str, typer.Argument(help="Name, source URI or content digest of the model")],
    on: Annotated[
        str | None, typer.Option(help="local: this machine (also when nothing describes another)")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Describe a machine: its GPU, as nvidia-smi names it")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of that GPU it has")] = 1,
    compute_capability: Annotated[str | None, typer.Option(help="Such as 9.0")] = None,
    driver: Annotated[str | None, typer.Option(help="NVIDIA driver, such as 580.65.06")] = None,
    cpu: Annotated[
        str | None, typer.Option(help="Architecture and vector units: 'x86_64 avx2 avx512f'")
    ] = None,
    system: Annotated[str | None, typer.Option("--os", help="Such as linux")] = None,
    arch: Annotated[str | None, typer.Option(help="Such as x86_64")] = None,
    backend: Annotated[str | None, typer.Option(help="Only engines of this backend")] = None,
    backend_version: Annotated[
        str | None, typer.Option(help="The backend's version there; none: not compared")
    ] = None,
    tensorrt_version: Annotated[
        str | None, typer.Option(help="TensorRT's version there; none: not compared")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Only the engine that this alias points at, such as prod")
    ] = None,
    min_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at once it must take")
    ] = None,
    min_seq_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a sequence it must take")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also engines that failed a gate, to look at them")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the engine for a model on this machine, or on a described one.

    Exit code 2 when none fits; then it says which field differs, the nearest engines first.

    What is not said of a described machine is not compared.
    """
    from trtforge.store.gates import GateRecords
    from trtforge.store.resolve import Wishes
    from trtforge.store.resolve import resolve as find

    described = _described(gpu, gpus, compute_capability, driver, cpu, system, arch, on)
    runtime = _runtime(backend, backend_version, tensorrt_version)
    shop = open_workshop()
    runtimes = (runtime,) if runtime else () if described else _installed(shop)
    machine = replace(described or local_machine(), runtimes=runtimes)
    manifests = list(shop.store.list_manifests())
    resolution = find(
        manifests,
        shop.store.list_aliases(),
        machine,
        model,
        Wishes(alias, backend, min_batch_size, min_seq_len, failed),
        GateRecords(shop.store.bucket).states(manifests),
    )
    if as_json:
        print_json(resolution.to_json())
    elif resolution.fitting:
        _print_engine(resolution)
    else:
        _print_near_misses(resolution)
    resolution.require()


def _described(
    gpu: str | None,
    gpus: int,
    compute_capability: str | None,
    driver: str | None,
    cpu: str | None,
    system: str | None,
    arch: str | None,
    on: str | None,
) -> Machine | None:
    """The machine that the options describe; None is this one."""
    told = {
        "gpu": gpu,
        "compute-capability": compute_capability,
        "driver": driver,
        "cpu": cpu,
        "os": system,
        "arch": arch,
        "gpus": gpus if gpus > 1 else None,
    }
    given = [name for name, value in told.items() if value is not None]
    if on is not None and (on != "local" or given):
        raise MachineDescriptionError(
            f"this machine, or the one that --{given[0]} describes"
            if given
            else "no such machine is known by name",
            field="--on",
            value=on,
            remedy="Use --on local alone, or describe a machine with --gpu or --cpu",
        )
    if not given:
        return None
    if gpu is None and (cpu is None or compute_capability or driver or gpus > 1):
        raise MachineDescriptionError(
            "this says something of a machine whose processor is not named",
            field=f"--{given[0]}",
            value=told[given[0]],
            remedy="Name its GPU with --gpu, or its CPU with --cpu for a machine without one",
        )
    return Machine(
        gpus=(GpuModel(gpu, compute_capability, None, gpus),) if gpu else (),
        driver_version=driver,
        os=system,
        arch=arch or (cpu.split()[0] if cpu and cpu.split() else None),
        cpu=cpu,
    )


def _runtime(
    backend: str | None, version: str | None, tensorrt_version: str | None
) -> Runtime | None:
    if version is None and tensorrt_version is None:
        return None
    if backend is None or version is None:
        raise MachineDescriptionError(
            "a version without the backend it is of, or TensorRT's without TensorRT-LLM's",
            field="--backend-version" if version else "--tensorrt-version",
            value=version or tensorrt_version,
            remedy="Give --backend and --backend-version with it",
        )
    return Runtime(backend, version, tensorrt_version)


def _installed(shop: "Workshop") -> tuple[Runtime, ...]:
    """What this machine's own toolchain would load engines with; none is no error."""
    from trtforge.spec import EngineSpec
    from trtforge.stages.compile import probe_backend

    try:
        found = probe_backend(shop, EngineSpec())
    except (BuildError, InputError):
        return ()
    return (Runtime(found.backend, found.backend_version, found.tensorrt_version),)


def _print_engine(resolution: "Resolution") -> None:
    best, others = resolution.fitting[0], len(resolution.fitting) - 1
    core, toolchain = best.manifest.core, best.manifest.core.built_with
    published = best.manifest.created_at
    rows = (
        ("Engine", best.manifest.engine_id),
        ("Model", f"{core.model.name} from {core.model.source}"),
        ("Valid on", toolchain.gpu_name or f"CPU {toolchain.cpu}"),
        ("Backend", f"{toolchain.backend} {toolchain.backend_version}"),
        ("Aliases", ", ".join(best.aliases) or "none"),
        ("Published", f"{published:%Y-%m-%d %H:%M} UTC, {age(published, datetime.now(UTC))}"),
        ("Machine", resolution.machine.describe()),
    )
    for name, value in rows:
        say(f"{name:12} {value}")
    if others:
        say(f"{others} more would run there; --json names them.")


def _print_near_misses(resolution: "Resolution") -> None:
    shown = resolution.near_misses[:_NEAR_MISSES_SHOWN]
    for candidate in shown:
        for line in _lines(candidate):
            err.print(line, markup=False, highlight=False, soft_wrap=True)
    left = len(resolution.near_misses) - len(shown)
    if left:
        err.print(f"… and {left} more; --json lists them all.", soft_wrap=True)


def _lines(candidate: "Candidate") -> list[str]:
    engine_id = candidate.manifest.engine_id[:12]
    return [
        f"{engine_id}  {m.field}: engine {m.engine!r}, machine {m.machine!r}"
        for m in candidate.mismatches
    ]
