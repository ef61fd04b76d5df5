"""What is running: a bar on a terminal, one line per notebook elsewhere."""

import sys
from threading import Lock

from tqdm import tqdm


class Progress:
    """Counts the cells of several notebooks that run side by side.

    Args:
        cells: number of code cells by notebook.
    """

    def __init__(self, cells: dict[str, int]):
        self.cells = cells
        self.finished = 0
        self._running: dict[str, int] = {}
        self._lock = Lock()
        shown = bool(cells) and sys.stdout.isatty()
        self._bar = tqdm(total=sum(cells.values()), unit="cell", file=sys.stdout, leave=False) if shown else None

    def cell(self, name: str, number: int) -> None:
        """``name`` starts its code cell ``number``, counted from 1."""
        with self._lock:
            ahead = number - max(self._running.get(name, 1), 1)
            self._running[name] = number
            if self._bar is not None:
                self._bar.update(ahead)
                self._describe()

    def done(self, name: str, verdict: str) -> None:
        """``name`` has ended; ``verdict`` is a few words."""
        with self._lock:
            self.finished += 1
            line = f"  [{self.finished}/{len(self.cells)}] {name}: {verdict}"
            if self._bar is None:
                print(line, flush=True)
                return
            self._bar.update(self.cells[name] - max(self._running.pop(name, 1), 1) + 1)
            self._describe()
            self._bar.write(line, file=sys.stdout)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _describe(self) -> None:
        running = (f"{name} cell {number}/{self.cells[name]}" for name, number in self._running.items())
        self._bar.set_description_str(", ".join(running))
