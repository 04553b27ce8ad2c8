"""What a run shows while it trains: a live line (plain lines where standard error is no terminal) and TensorBoard curves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from omni import distributed


class Reporter:
    """Reports on the main rank; on others it does nothing. `unit` names what throughput counts."""

    def __init__(self, run_dir: Path, name: str, unit: str, step: int, steps: int) -> None:
        self._active = distributed.is_main()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._unit, self._name = unit, name
        self._steps, self._first, self._start = steps, step, time.monotonic()
        self._progress: Progress | None = None
        if not self._active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        # what an interrupted run wrote beyond the checkpoint is purged, so that no step is there twice
        self._curves = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task(name, total=steps, completed=step, detail="")
            self._progress.start()

    def line(self, text: str) -> None:
        """One line about something that happened."""
        if self._active:
            self._console.print(f"{self._name}: {text}", markup=False)

    def update(self, step: int, loss: float, per_second: float, *, due: bool) -> None:
        """After an update; `due` when it is time for a plain line."""
        if not self._active:
            return
        elapsed = time.monotonic() - self._start
        left = timedelta(seconds=round(elapsed / max(step - self._first, 1) * (self._steps - step)))
        detail = f"loss {loss:.4f}  {per_second:,.0f} {self._unit}/s  {left} left"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, detail=detail)
        elif due:
            self.line(f"step {step}/{self._steps}  {detail}")

    def scalars(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Points of TensorBoard curves."""
        if self._active:
            for name, value in values.items():
                self._curves.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Curves to disk: before every checkpoint, so that a resumed run leaves no gap."""
        if self._active:
            self._curves.flush()

    def close(self) -> None:
        """End the live line and the curves."""
        if self._active:
            if self._progress is not None:
                self._progress.stop()
            self._curves.close()
