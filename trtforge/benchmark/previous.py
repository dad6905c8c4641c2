"""The engine in use, for a page that tells of another one."""

from dataclasses import dataclass

from trtforge.benchmark.metrics import Measurement


@dataclass(frozen=True)
class Previous:
    """The engine that an alias pointed to before; `why_not` says why it cannot be compared."""

    engine: str
    alias: str
    measurements: tuple[Measurement, ...] = ()
    why_not: str = ""
