"""`trtforge gate`: run the gates on a published engine, or let it pass in spite of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from trtforge.cli.output import (
    AsJson,
    EngineId,
    err,
    open_workshop,
    print_json,
    print_table,
    say,
)
from trtforge.display import BuildDisplay

if TYPE_CHECKING:
    from trtforge.gates.correctness import Verdict
    from trtforge.gates.enforce import Decision

app = typer.Typer()
_SHOWN_DIGITS = 12
_READ = {
    "teacher-forced": "read token by token (teacher-forced)",
    "prefill": "each beginning of it a prompt (prefill)",
}


@app.command()
def gate(
    engine: EngineId,
    override: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Let it pass, whatever its gates said; kept, with who and why"
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who does it [default: user@host]")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the gates again on a published engine, on this machine.

    Exit code 5 when it fails one; then no alias may point at it, until somebody lets it pass with
    --override, which runs nothing.
    """
    if override is not None:
        _let_pass(engine, override, by, as_json)
        return
    from trtforge.stages.regate import regate

    with BuildDisplay(err):
        done = regate(open_workshop(), engine)
    if as_json:
        verdicts = [{**v.to_json(), "passed": v.passed} for v in done.decision.correctness]
        print_json(
            {
                "engine_id": done.manifest.engine_id,
                "passed": done.decision.passed,
                "gates": done.decision.to_json(),
                "verdicts": verdicts,
            }
        )
    else:
        _print(done.decision)
    done.decision.require(done.manifest.engine_id)


def _let_pass(engine: str, reason: str, by: str | None, as_json: bool) -> None:
    from trtforge.stages.gate import Override, overrule
    from trtforge.store.aliases import who

    shop = open_workshop()
    manifest = shop.store.get_manifest(engine)
    record = overrule(shop, manifest, Override(by or who(), reason))
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    shown = manifest.engine_id[:_SHOWN_DIGITS]
    say(f"{', '.join(record.gates)} of {shown} let pass by {record.by}: {record.reason}")
    say(f"`trtforge promote {shown} ALIAS` points an alias at it.")


def _print(decision: "Decision") -> None:
    print_table(
        ("Prompt", "Job", "Same tokens", "From fp32", "Worst", "Top-1", "KL, nats", ""),
        [_row(verdict) for verdict in decision.correctness],
    )
    say(
        "Same tokens  as the original 16-bit model's, until the first that differs; rounding may "
        "explain that one"
    )
    say(
        "From fp32    how far the answer is from fp32, in the 16-bit model's own distance; Worst: "
        "at any one token"
    )
    for verdict in decision.correctness:
        if not verdict.passed:
            say(f"{verdict.source}, {verdict.job}: {verdict.reason}")
    read = next((v for v in decision.correctness if v.perplexity is not None), None)
    if read:
        say(
            f"Text         perplexity {read.perplexity:.3f}, the original model's "
            f"{read.reference_perplexity:.3f}; {_READ.get(read.method, 'read')}"
        )
    performance = decision.performance
    say(f"Performance  {performance.describe()}")
    for comparison in performance.comparisons:
        say(f"             {comparison}")
    say("Verdict      passed" if decision.passed else "Verdict      failed")


def _row(verdict: "Verdict") -> tuple[str, ...]:
    return (
        verdict.source,
        verdict.job,
        f"{verdict.agreed_tokens}/{verdict.compared_tokens}",
        _number(verdict.rounding_ratio, ".2f"),
        _number(verdict.worst_step_ratio, ".2f"),
        _number(verdict.top1_agreement, ".3f"),
        _number(verdict.kl, ".2g"),
        "passed" if verdict.passed else "failed",
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
