"""What `trtllm-build` prints, read as it comes: phases with their times. Standard library only.

Upstream's logger writes `[MM/DD/YYYY-HH:MM:SS] [TRT-LLM] [I] ` before each line. Its own times are
`HH:MM:SS` and begin anew after a day, so a phase is measured between the lines that end it.
Source of the lines: `tensorrt_llm/builder.py` and `commands/build.py`, 0.16 and 1.x.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

PHASES = ("load", "construct", "weights", "compile", "save")
"""The phases of one rank, in order: reading the checkpoint, making the network of it, giving it
the weights, TensorRT's compilation, and writing the engine."""

_CONSTRUCTED = re.compile(
    r"Total time of constructing network from module object (?P<s>[\d.]+(?:e[+-]?\d+)?) seconds"
)
_ENDS = (
    ("weights", re.compile(r"Total time to initialize the weights in network .*: (?P<t>[\d:]+)")),
    ("", re.compile(r"Total time of building all engines: (?P<t>[\d:]+)")),
    ("compile", re.compile(r"Total time of building .*: (?P<t>[\d:]+)")),
    ("save", re.compile(r"Engine serialized\. Total time: (?P<t>[\d:]+)")),
)
_COMPILING = re.compile(r"Build TensorRT engine ")
_SAVING = re.compile(r"Serializing engine to .*rank(?P<rank>\d+)\.engine")
_PEAK = re.compile(r"Build phase peak memory: (?P<own>[\d.]+) MB, children: (?P<rest>[\d.]+) MB")
_NO_CACHE = re.compile(r"Invalid timing cache, using freshly created one")
_OTHER_CACHE = re.compile(
    r"timing cache.*(?:mismatch|different|incompatible|not compatible|does not match)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Phase:
    """One phase that has ended.

    Attributes:
        name: One of `PHASES`.
        rank: Whose engine; None when the lines do not tell.
        seconds: Measured between the lines that end it and the one before; what upstream says
            where several ranks are built at once and their lines are mixed.
        said_s: What upstream says, to the second at best; None when it says nothing.
    """

    name: str
    rank: "int | None"
    seconds: float
    said_s: "float | None"

    def to_json(self) -> "dict[str, Any]":
        return asdict(self)


class BuildLog:
    """Reads the lines of one build.

    Args:
        started_s: When it was started, on the clock of `feed`.
        at_once: How many ranks are built at once.
    """

    def __init__(self, started_s: float, at_once: int = 1) -> None:
        self.phases: list[Phase] = []
        self.said_peak_bytes: int | None = None
        self.cache_refused = False
        self.cache_unreadable = False
        self._before_s = started_s
        self._mixed = at_once > 1
        self._rank: int | None = None
        self._saved = 0

    def feed(self, line: str, now_s: float) -> "str | None":
        """Read one line; what goes on from here, for a person, when it says so."""
        rank = "" if self._mixed else f" (rank {self._saved})" if self._saved else ""
        constructed = _CONSTRUCTED.search(line)
        if constructed:
            said_s = float(constructed["s"])
            # Reading the checkpoint comes before, and has no line of its own.
            both_s = now_s - self._before_s
            self._end("load", now_s, None, max(both_s - said_s, 0.0))
            self._end("construct", now_s, said_s, min(said_s, both_s))
            return f"giving the network its weights{rank}"
        for name, pattern in _ENDS:
            match = pattern.search(line)
            if match:
                return self._ended(name, match, now_s)
        if _COMPILING.search(line):
            return f"compiling with TensorRT{rank}"
        saving = _SAVING.search(line)
        if saving:
            self._rank = int(saving["rank"])
            return f"writing rank{self._rank}.engine"
        peak = _PEAK.search(line)
        if peak:
            said = int((float(peak["own"]) + float(peak["rest"])) * (1 << 20))
            self.said_peak_bytes = max(said, self.said_peak_bytes or 0)
        self.cache_unreadable |= bool(_NO_CACHE.search(line))
        self.cache_refused |= bool(_OTHER_CACHE.search(line))
        return None

    def _ended(self, name: str, match: "re.Match[str]", now_s: float) -> "str | None":
        if not name:
            return None
        self._end(name, now_s, _seconds(match["t"]))
        if name == "compile":
            return "writing the timing cache and the engine"
        if name == "save":
            self._saved += 1
            self._rank = None
        return None

    def _end(
        self, name: str, now_s: float, said_s: "float | None", seconds: "float | None" = None
    ) -> None:
        measured = now_s - self._before_s if seconds is None else seconds
        if self._mixed:
            rank, measured = self._rank, said_s if said_s is not None else measured
        else:
            rank = self._saved
        self.phases.append(Phase(name, rank, measured, said_s))
        self._before_s = now_s


def _seconds(clock: str) -> float:
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part or 0)
    return float(seconds)
