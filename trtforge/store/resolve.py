"""resolve: the engine for a model on a machine, or what the nearest ones lack.

How the best of several that fit is found, first difference decides:

1. On a machine with a GPU, an engine for that GPU comes before one for the CPU.
2. For a CPU: the one that uses more of its vector units.
3. What people said: the alias `prod`, then `latest`, then any other, then none.
4. A backend whose runtime is known to be there (and then has the right version).
5. The newest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.engines.machine import Machine
from trtforge.errors import InputError
from trtforge.spec import did_you_mean
from trtforge.store.aliases import AliasRecord
from trtforge.store.compatibility import NOT_RECORDED, Mismatch, compatibility, runs_on_gpu
from trtforge.store.gates import GateState, gate_state
from trtforge.store.layout import AliasName
from trtforge.store.manifests import Manifest, ModelIdentity

_ALIAS_ORDER = ("prod", "latest")
_DIGEST_DIGITS = 8


class ModelUnknownError(InputError):
    """No engine of this model is published."""


class NoEngineFitsError(InputError):
    """Engines of the model are published, and none of them fits the machine and the wishes."""


@dataclass(frozen=True)
class Wishes:
    """What the engine must be beside valid on the machine; None asks for nothing.

    Attributes:
        alias: Only engines that an alias of this name points at.
        min_batch_size: `max_batch_size` in effect must be this or more.
        min_seq_len: `max_seq_len` in effect must be this or more.
        failed: Also engines that failed a gate and that nobody let pass.
    """

    alias: str | None = None
    backend: str | None = None
    min_batch_size: int | None = None
    min_seq_len: int | None = None
    failed: bool = False


@dataclass(frozen=True)
class Candidate:
    """An engine, the aliases that point at it, and where it does not fit."""

    manifest: Manifest
    aliases: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]

    def to_json(self) -> dict[str, Any]:
        core = self.manifest.core
        return {
            "engine_id": self.manifest.engine_id,
            "model": core.model.name,
            "aliases": list(self.aliases),
            "toolchain": core.toolchain,
            "created_at": self.manifest.created_at.isoformat(),
            "size_bytes": core.size_bytes,
            "mismatches": [mismatch.to_json() for mismatch in self.mismatches],
        }


@dataclass(frozen=True)
class Resolution:
    """The answer.

    Attributes:
        fitting: Engines that run there, the best first.
        near_misses: The others: those for the right kind of device first, then by the number of
            fields that differ, then the newest.
    """

    model: str
    machine: Machine
    fitting: tuple[Candidate, ...]
    near_misses: tuple[Candidate, ...]

    def require(self) -> Candidate:
        """The best engine.

        Raises:
            NoEngineFitsError: There is none; it tells of the nearest.
        """
        if self.fitting:
            return self.fitting[0]
        nearest = self.near_misses[0]
        first = nearest.mismatches[0]
        more = len(nearest.mismatches) - 1
        raise NoEngineFitsError(
            f"none of its {len(self.near_misses)} engines fits {self.machine.describe()}; the "
            f"nearest, {nearest.manifest.engine_id[:12]}, needs {first.field} {first.engine!r} and "
            f"finds {first.machine!r}{f', and {more} more fields differ' if more else ''}",
            field="MODEL",
            value=self.model,
            remedy="Build one on such a machine, or change what differs",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "machine": self.machine.to_json(),
            "engine": self.fitting[0].to_json() if self.fitting else None,
            "others": [candidate.to_json() for candidate in self.fitting[1:]],
            "near_misses": [candidate.to_json() for candidate in self.near_misses],
        }


def resolve(
    manifests: Iterable[Manifest],
    aliases: Iterable[tuple[AliasName, AliasRecord]],
    machine: Machine,
    model: str,
    wishes: Wishes = Wishes(),
    gates: Mapping[str, GateState] | None = None,
) -> Resolution:
    """Find the engine for a model on a machine.

    Args:
        manifests: All engines, of any model.
        aliases: All aliases.
        model: The name its aliases are filed under, its source with or without the revision, or
            8 or more digits of the content digest of its weights.
        gates: How engines stand with their gates, by their ids (`GateRecords.states`); of those
            left out what their manifests say counts.

    Raises:
        ModelUnknownError: There is no engine of this model at all.
    """
    everything = list(manifests)
    mine = [manifest for manifest in everything if is_model(manifest.core.model, model)]
    if not mine:
        raise _unknown(model, everything)
    pointing = aliases_by_engine(aliases)
    candidates = [
        Candidate(
            manifest,
            pointing.get(manifest.engine_id, ()),
            (
                *compatibility(manifest, machine),
                *_unmet(manifest, pointing.get(manifest.engine_id, ()), wishes),
                *_failed(manifest, gates or {}, wishes),
            ),
        )
        for manifest in mine
    ]
    candidates.sort(key=lambda c: (c.manifest.created_at, c.manifest.engine_id), reverse=True)
    return Resolution(
        model,
        machine,
        tuple(
            sorted(
                (c for c in candidates if not c.mismatches),
                key=lambda c: _preference(c, machine),
            )
        ),
        tuple(sorted((c for c in candidates if c.mismatches), key=lambda c: _distance(c, machine))),
    )


def is_model(identity: ModelIdentity, text: str) -> bool:
    """Whether `text` names this model: see `resolve`."""
    if text in (identity.name, identity.source, _without_revision(identity.source)):
        return True
    return len(text) >= _DIGEST_DIGITS and identity.content_digest.startswith(text.lower())


def aliases_by_engine(
    aliases: Iterable[tuple[AliasName, AliasRecord]],
) -> dict[str, tuple[str, ...]]:
    """The names that point at each engine, `prod` and `latest` first."""
    pointing: dict[str, set[str]] = {}
    for name, record in aliases:
        pointing.setdefault(record.engine_id, set()).add(name.alias)
    return {
        engine_id: tuple(sorted(names, key=lambda name: (_alias_rank([name]), name)))
        for engine_id, names in pointing.items()
    }


def _unmet(manifest: Manifest, aliases: Sequence[str], wishes: Wishes) -> Iterator[Mismatch]:
    backend = manifest.core.built_with.backend
    if wishes.backend is not None and backend != wishes.backend:
        yield Mismatch("backend", backend or NOT_RECORDED, wishes.backend)
    if wishes.alias is not None and wishes.alias not in aliases:
        yield Mismatch("alias", ", ".join(aliases) or "none", wishes.alias)
    for field, least in (
        ("max_batch_size", wishes.min_batch_size),
        ("max_seq_len", wishes.min_seq_len),
    ):
        value = manifest.core.config.get(field)
        if least is not None and not (isinstance(value, int | float) and value >= least):
            yield Mismatch(field, str(value or NOT_RECORDED), f"{least} or more wanted")


def _failed(
    manifest: Manifest, gates: Mapping[str, GateState], wishes: Wishes
) -> Iterator[Mismatch]:
    state = gates.get(manifest.engine_id) or gate_state(manifest)
    if state.blocks and not wishes.failed:
        yield Mismatch("gates", state.describe(), "passed")


def _preference(candidate: Candidate, machine: Machine) -> tuple[bool, int, int, bool]:
    toolchain = candidate.manifest.core.built_with
    on_gpu = runs_on_gpu(toolchain)
    features = 0 if on_gpu else len(toolchain.cpu.split())
    known = any(runtime.backend == toolchain.backend for runtime in machine.runtimes)
    return not on_gpu, -features, _alias_rank(candidate.aliases), not known


def _distance(candidate: Candidate, machine: Machine) -> tuple[bool, int]:
    on_gpu = runs_on_gpu(candidate.manifest.core.built_with)
    return on_gpu != bool(machine.gpus), len(candidate.mismatches)


def _alias_rank(aliases: Sequence[str]) -> int:
    ranks = [_ALIAS_ORDER.index(name) for name in aliases if name in _ALIAS_ORDER]
    return min(ranks, default=len(_ALIAS_ORDER) + (not aliases))


def _without_revision(source: str) -> str:
    return source.rpartition("@")[0] if source.startswith("hf://") and "@" in source else source


def _unknown(model: str, manifests: Sequence[Manifest]) -> ModelUnknownError:
    names = sorted({manifest.core.model.name for manifest in manifests})
    return ModelUnknownError(
        "no engine of this model is published",
        field="MODEL",
        value=model,
        remedy=did_you_mean(model, names) if names else "Build one: `trtforge build SPEC.yaml`",
    )
