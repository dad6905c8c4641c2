"""`trtforge memory`: does an engine fit into a GPU's memory?"""

from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.output import AsJson, SpecFile, print_json, print_table, say
from trtforge.settings import load_settings
from trtforge.units import size

if TYPE_CHECKING:
    from trtforge.engines.memory import MemoryPlan

app = typer.Typer()
_NAMES = {"gpu": "GPU", "host": "memory", "disk": "disk"}


@app.command()
def memory(
    spec_file: SpecFile,
    gpu_gb: Annotated[
        float | None,
        typer.Option(min=1, help="Memory of a GPU that is not here, in GB (10⁹ bytes)"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what an engine needs of a GPU; with TensorRT-LLM, of the host and of the disk too.

    Needs no GPU: give its memory with --gpu-gb. Fetches the model's config.json and no weights.
    Exit code 2 when it does not fit.
    """
    from trtforge.engines.gpu import find_gpus
    from trtforge.sources import parse_source, resolve
    from trtforge.spec import load_spec
    from trtforge.stages.memory import plan_memory, runs_on_gpu

    spec = load_spec(spec_file)
    on_cpu = runs_on_gpu(spec.engine, None) is False
    plan = None
    if not on_cpu:
        plan = plan_memory(
            spec,
            resolve(parse_source(spec.model.source)),
            token=None,
            gpus=find_gpus(),
            work_root=load_settings().home,
            gpu_bytes=int(gpu_gb * 1e9) if gpu_gb else None,
        )
    if as_json:
        print_json(plan.to_json() if plan else None)
    elif plan is None:
        say(
            "An engine for a CPU takes no GPU's memory"
            if on_cpu
            else "config.json of this architecture does not say enough to tell"
        )
    else:
        print_memory(plan)
    if plan is not None:
        plan.require_fits()


def print_memory(plan: "MemoryPlan") -> None:
    """The table of what each part needs, and what would fit."""
    rows = [
        (
            _NAMES[row.where],
            row.name,
            size(row.size_bytes),
            "exact" if row.exact else "estimate",
            row.formula,
        )
        for row in plan.rows
    ]
    print_table(("Of", "What", "Needs", "", "How"), rows)
    for where in plan.counted:
        available = plan.available_bytes(where)
        there = "not known here" if available is None else f"{size(available)} there"
        needed = size(plan.needed_bytes(where))
        say(f"{_NAMES[where]:<7}{needed} needed, {there}")
    if plan.ranks > 1:
        say(f"The GPU is that of rank {plan.rank}, which needs the most of {plan.ranks}.")
    if plan.max_batch_size is not None:
        asked = plan.asked
        say(
            f"Fits: max_batch_size up to {plan.max_batch_size} at max_seq_len "
            f"{asked['max_seq_len']}; max_seq_len up to {plan.max_seq_len} at max_batch_size "
            f"{asked['max_batch_size']}"
        )
