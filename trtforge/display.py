"""What `trtforge build` shows in the terminal while stages run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from trtforge.progress import StageEvent, listening


class BuildDisplay:
    """One line per stage: a bar while it works, then how it ended and how long it took.

    Use it as a context manager; it listens to the stage events of this process. Where output is
    not a terminal, only the ends of stages are printed, a line each.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.fields[stage]:<9}", table_column=Column(min_width=9)),
            BarColumn(bar_width=24, table_column=Column(min_width=24)),
            _Amount(),
            # The step may carry a long path; it is what gives way.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            expand=True,
            transient=True,
        )
        self._shown: dict[str, TaskID] = {}
        self._listening = listening(self._on_event)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        self._listening.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.__exit__(kind, error, trace)
        if self._console.is_terminal:
            self._bars.stop()

    def _on_event(self, event: StageEvent) -> None:
        match event.kind:
            case "started":
                bar = self._bars.add_task("looking in the store", stage=event.stage, unit="")
                self._shown[event.stage] = bar
            case "progress" if event.progress is not None and event.stage in self._shown:
                progress = event.progress
                bar = self._shown[event.stage]
                # update() and reset() take a total of None, "not known", for "leave it as it is".
                next(task for task in self._bars.tasks if task.id == bar).total = progress.total
                self._bars.reset(
                    bar,
                    completed=progress.done,
                    description=progress.what,
                    stage=event.stage,
                    unit=progress.unit,
                )
            case "hit" | "done" | "failed":
                if event.stage in self._shown:
                    self._bars.remove_task(self._shown.pop(event.stage))
                self._console.print(_ending(event), soft_wrap=True)


class _Amount(TextColumn):
    """How much of how much, in the unit of the step."""

    def __init__(self) -> None:
        super().__init__("", table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        total = task.total
        if total is None or not task.fields.get("unit"):
            return Text("")
        if task.fields["unit"] == "bytes":
            return Text(f"{decimal(int(task.completed))} of {decimal(int(total))}")
        return Text(f"{int(task.completed)} of {int(total)}")


def _ending(event: StageEvent) -> Text:
    mark, style, word = {
        "hit": ("=", "cyan", "found in store"),
        "done": ("+", "green", "made"),
        "failed": ("!", "red", "failed"),
    }[event.kind]
    seconds = f"{event.seconds:6.1f} s" if event.seconds is not None else ""
    line = Text.assemble(
        (f" {mark} {event.stage:<9} ", f"bold {style}"),
        (f"{word:<14} ", style),
        f"{seconds}  ",
    )
    # A failure's message is the command's last word; here it would be said twice.
    return line.append(event.message if event.kind != "failed" else "")
