"""The raw data of a benchmark: one line per request, from which all numbers are computed."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from trtforge.errors import InputError

RAW_FILE = "requests.jsonl"
Who = Literal["engine", "eager"]
Status = Literal["ok", "short", "failed", "timed-out"]


class RawDataError(InputError):
    """A file of raw data is not what a benchmark writes."""


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        who: What answered.
        workload: Its label.
        concurrency: How many requests ran at once.
        repeat: Which run over all concurrencies, from 0.
        request: Which request of this repeat at this concurrency, from 0.
        start_s: When it was sent; seconds on the clock of this repeat at this concurrency, which
            begins with its first request.
        token_s: When each of its tokens came, on the same clock.
        output_tokens: How many were asked for.
        status: `short`: fewer tokens came than asked for; `timed-out`: it took longer than
            `benchmark.timeout_s`; `failed`: nothing came. Only `ok` counts for times and rates.
    """

    who: str
    workload: str
    concurrency: int
    repeat: int
    request: int
    start_s: float
    token_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int
    status: Status = "ok"

    @property
    def first_s(self) -> float:
        return self.token_s[0]

    @property
    def last_s(self) -> float:
        return self.token_s[-1]

    def to_line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


_FIELDS = {field.name for field in fields(Sample)}
_REQUIRED = _FIELDS - {"status"}


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write raw data."""
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(sample.to_line() for sample in samples)


def read_samples(lines: Iterable[str], where: str = RAW_FILE) -> list[Sample]:
    """Read raw data; the lines of before requests were told one by one count as such.

    Raises:
        RawDataError: naming the line.
    """
    found: list[Sample] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            found += _read(told)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RawDataError(
                f"line {number} of {where} is not a request that a benchmark wrote ({error})",
                remedy="Give the requests.jsonl of a run, as it was written",
            ) from error
    return found


def _read(told: Mapping[str, Any]) -> Iterator[Sample]:
    if "token_s" in told:
        if missing := _REQUIRED - set(told):
            raise LookupError(f"no {min(missing)}")
        yield Sample(
            **{
                **{name: told[name] for name in _FIELDS & set(told)},
                "token_s": tuple(float(seconds) for seconds in told["token_s"]),
            }
        )
    elif str(told["id"]).startswith("concurrency-"):
        yield from _of_a_batch(told)


def _of_a_batch(told: Mapping[str, Any]) -> Iterator[Sample]:
    """A line of the benchmark's first version: a batch, repeated. It told no lengths of prompts."""
    concurrency = int(told["id"].removeprefix("concurrency-"))
    for repeat, times in enumerate(told["step_s"]):
        for request in range(concurrency):
            yield Sample(
                who=told["who"],
                workload="",
                concurrency=concurrency,
                repeat=repeat,
                request=request,
                start_s=0.0,
                token_s=tuple(times),
                input_tokens=0,
                output_tokens=len(times),
            )


def of_cell(
    samples: Sequence[Sample], who: str, concurrency: int
) -> tuple[tuple[Sample, ...], ...]:
    """The requests of one side at one concurrency, by repeat."""
    mine = [s for s in samples if s.who == who and s.concurrency == concurrency]
    return tuple(
        tuple(s for s in mine if s.repeat == repeat) for repeat in sorted({s.repeat for s in mine})
    )
