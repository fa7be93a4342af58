"""What a run writes down: metrics as JSON lines and for TensorBoard, and pictures."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from universal_model_hub.files import write_bytes


def runs_folder() -> Path:
    """Return where long runs live: ``$UMH_RUNS``, or the user's cache folder."""
    chosen = os.environ.get("UMH_RUNS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "universal_model_hub" / "runs"


def commit() -> str:
    """Return the commit of this checkout, with ``+changes`` if files differ from it.

    What commands write, results and bundled weights, does not count.
    """
    try:
        written = [f":(top,exclude){path}" for path in ("results", "universal_model_hub/weights")]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *written)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    """Run git in this checkout and return what it printed."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


class RunLog:
    """``metrics.jsonl`` and TensorBoard files of a run folder.

    A resumed run first drops the lines behind the step it goes on from: they are written again.
    """

    def __init__(self, folder: Path, step: int, *, enabled: bool) -> None:
        self.enabled = enabled
        self.path = folder / "metrics.jsonl"
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in read_lines(self.path) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_bytes(self.path, text.encode())
        # TensorBoard takes a second to import and only the process that logs needs it.
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Append one line; ``part`` is ``train`` or ``validation``."""
        if not self.enabled:
            return
        line = {"step": step, "part": part, **values}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{part}/{name}", value, step)

    def picture(self, step: int, batch: Mapping[str, Tensor], restored: Tensor) -> None:
        """Store middle slices of the batch: original, corrupted and restored, top to bottom."""
        if not self.enabled:
            return
        rows = (batch["original"], batch["corrupted"], restored)
        tall = torch.cat([middle_slices(cubes) for cubes in rows], dim=0)
        self.board.add_image("cubes", tall[None].clamp(0, 1), step)

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self.board.close()


def middle_slices(cubes: Tensor) -> Tensor:
    """Lay the middle Z slices of (N, 1, X, Y, Z) side by side, anterior up: (Y, N * X)."""
    slices = cubes[:, 0, :, :, cubes.shape[-1] // 2].float().cpu()  # (N, X, Y)
    return torch.cat([s.T.flip(0) for s in slices], dim=1)


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read a JSON-lines file, leaving out a last line that a killed process cut short."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
