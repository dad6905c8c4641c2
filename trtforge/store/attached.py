"""What is kept with an engine beside its manifest and files, and travels with it.

What gates and people said of it (`gates/`), its benchmarks (`benchmarks/`), and their raw data and
reports (`runs/`). Each object has a name that holds for any bucket:

    gates/<time>.json    benchmarks/<time>.json    runs/<run id>/<file>
"""

import re
from collections.abc import Iterator
from pathlib import Path

from trtforge.errors import InputError
from trtforge.files import FileRef
from trtforge.store.benchmarks import BenchmarkRecord, Benchmarks
from trtforge.store.gates import GateRecord
from trtforge.store.layout import BENCHMARKS, GATES, InvalidNameError, run_key, slug
from trtforge.store.objects import Bucket
from trtforge.store.records import parse_record

RUNS = "runs/"
_RECORD = re.compile(r"(gates|benchmarks)/[A-Za-z0-9._~-]{1,240}\.json")


class AttachedInvalidError(InputError):
    """Something is named or made as nothing that is kept with an engine."""


def attached(bucket: Bucket, engine_id: str) -> Iterator[tuple[str, str]]:
    """Name and key of everything kept with an engine; gates first, runs last, else by name."""
    for kind in (GATES, BENCHMARKS):
        prefix = f"{kind}{engine_id}/"
        for key in sorted(bucket.keys(prefix)):
            yield f"{kind}{key.removeprefix(prefix)}", key
    for run_id in sorted({record.run_id for record in Benchmarks(bucket).of(engine_id)}):
        for key in sorted(bucket.keys(f"{RUNS}{slug(run_id)}/")):
            yield key, key


def copy_attached(source: Bucket, dest: Bucket, engine_id: str) -> None:
    """Keep in a second bucket, too, what it lacks of all this; evidence must be there already.

    A benchmark is seen there when its raw data are.
    """
    there = {key for _, key in attached(dest, engine_id)}
    keys = [key for _, key in attached(source, engine_id) if key not in there]
    for key in sorted(keys, key=_order):
        stored = source.get(key)
        if stored:
            dest.put_if_absent(key, stored.data)


class Arriving:
    """What came with an engine from elsewhere: checked one by one, then kept all at once."""

    def __init__(self, engine_id: str) -> None:
        self._engine_id = engine_id
        self._runs: set[str] = set()
        self._files: dict[str, Path] = {}
        self.evidence: list[FileRef] = []

    def add(self, name: str, file: Path) -> None:
        """Take note of an object, whose bytes are in `file` until `keep`.

        Raises:
            AttachedInvalidError: Its name or its content is not what belongs to this engine, or it
                was there already.
            UnknownFormatError, RecordInvalidError: It is a record that cannot be read.
        """
        if _RECORD.fullmatch(name):
            kind, _, rest = name.partition("/")
            key = f"{kind}/{self._engine_id}/{rest}"
            self._read(name, file.read_bytes())
        else:
            key = self._run_key(name)
        if key in self._files:
            raise _invalid(name, "it comes twice")
        self._files[key] = file

    def keep(self, bucket: Bucket) -> None:
        """Put everything into a bucket, which has the evidence; what is there already stays."""
        for key in sorted(self._files, key=_order):
            bucket.put_if_absent(key, self._files[key].read_bytes())

    def _read(self, name: str, data: bytes) -> None:
        if name.startswith(GATES):
            verdict = parse_record(GateRecord, data, name)
            engine_id = verdict.engine_id
            self.evidence.extend(verdict.evidence)
        else:
            benchmark = parse_record(BenchmarkRecord, data, name)
            engine_id = benchmark.engine_id
            self._runs.add(benchmark.run_id)
        if engine_id != self._engine_id:
            raise _invalid(name, "it is about another engine")

    def _run_key(self, name: str) -> str:
        for run_id in self._runs:
            prefix = f"{RUNS}{slug(run_id)}/"
            if name.startswith(prefix) and _is_key(run_id, name.removeprefix(prefix), name):
                return name
        raise _invalid(name, "no benchmark of the engine names it")


def _order(key: str) -> tuple[int, str]:
    """Verdicts first; benchmarks after their raw data."""
    return (GATES, RUNS, BENCHMARKS).index(f"{key.partition('/')[0]}/"), key


def _is_key(run_id: str, name: str, key: str) -> bool:
    try:
        return run_key(run_id, name) == key
    except InvalidNameError:
        return False


def _invalid(name: str, problem: str) -> AttachedInvalidError:
    return AttachedInvalidError(
        f"this does not belong to the engine: {problem}",
        field="name",
        value=name,
        remedy="Copy the engine again from where it was published",
    )
