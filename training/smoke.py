"""Every stage once, by the commands that a lab would use, on synthetic scans: ``make train-smoke``.

Phantoms in the real layouts, check, cubes, pre-training of the full objective by two processes,
kill and resume, publishing to a local Hub, loading from there, and reproduction from the card.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from universal_model_hub.fit.training.checkpoint import list_checkpoints

ROOT = Path(__file__).parent.parent
SUBJECTS = {"luna16": 10, "lits2017": 6, "brats2018": 5, "msd_heart": 6}
REPO = "synthetic/unet3d-smoke"
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]


def main() -> int:
    """Run all stages; any failure raises and ends with a non-zero exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="train-smoke-") as name:
        work = Path(name)
        stage("phantoms", lambda: make_phantoms(work))
        stage("check", lambda: check(work))
        stage("cubes", lambda: make_cubes(work))
        stage("pre-training, killed", lambda: train(work, kill=True))
        stage("pre-training, resumed", lambda: train(work, kill=False))
        stage("publish, load", lambda: publish_and_load(work))
        stage("reproduce", lambda: reproduce(work))
    say(f"all stages passed in {time.monotonic() - started:.0f} s")
    return 0


def stage(name: str, run: object) -> None:
    """Run one stage and say how long it took."""
    started = time.monotonic()
    say(f"{name} ...")
    run()  # type: ignore[operator]
    say(f"{name}: {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"train-smoke: {text}", file=sys.stderr, flush=True)


def call(*arguments: str | Path, **environment: str) -> str:
    """Run ``python -m ...`` and return its standard output; a failure raises."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {done.returncode}")
    return done.stdout


def make_phantoms(work: Path) -> None:
    """Write synthetic scans in the layouts of the four pre-training sets."""
    for name, subjects in SUBJECTS.items():
        arguments = ["--subjects", str(subjects), "--seed", "0", "--size", "toy"]
        call("training.corpora.phantom", "write", name, work / name, *arguments)


def check(work: Path) -> None:
    """Check every corpus; an error in the data ends the run."""
    for name in SUBJECTS:
        print(call("training.corpora", "check", name, work / name), file=sys.stderr)


def make_cubes(work: Path) -> None:
    """Cut the cubes of all corpora into one store."""
    folders = [f"{name}={work / name}" for name in SUBJECTS]
    call("training.prepare", "--recipe", "smoke", "--output", work / "cubes", *folders)


def train(work: Path, *, kill: bool) -> None:
    """Pre-train by two processes; ``kill`` ends the first one hard after its second checkpoint."""
    command = [sys.executable, *TWO_PROCESSES, "training.pretrain", "--recipe", "smoke"]
    command += ["--cubes", str(work / "cubes"), "--run-folder", str(work / "run")]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoints = work / "run" / "checkpoints"
    while kill and process.poll() is None and len(list_checkpoints(checkpoints)) < 2:
        time.sleep(0.05)
    if kill:
        os.kill(int((work / "run" / "lock").read_text()), signal.SIGKILL)
    code = process.wait()
    if kill and code == 0:
        raise SystemExit("the run was over before it could be killed")
    if not kill and code:
        raise SystemExit(f"the resumed run ended with {code}")


def publish_and_load(work: Path) -> None:
    """Publish to a local Hub and load the encoder from there, as a stranger would."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "local_hub.py"), "--root", str(work / "hub")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        variables = dict(part.split("=", 1) for part in server.stdout.readline().split())
        variables |= {"HF_TOKEN": "hf_local", "HF_HUB_CACHE": str(work / "cache")}
        model = work / "unet3d-smoke"
        print(
            call("training.publish", "--run-folder", work / "run", "-o", model, "--repo-id", REPO,
                 **variables),
            file=sys.stderr,
        )  # fmt: skip
        load = (
            "import torch, universal_model_hub as umh; "
            f"encoder = umh.load_encoder('hf-hub:{REPO}'); "
            "assert encoder.load_report.verified == 'hub', encoder.load_report; "
            "assert encoder.embed(torch.rand(1, 1, 32, 32, 32)).shape == (1, 64)"
        )
        subprocess.run(
            [sys.executable, "-c", load], cwd=ROOT, env={**os.environ, **variables}, check=True
        )
    finally:
        server.terminate()
        server.wait()


def reproduce(work: Path) -> None:
    """Train once more from the card, uninterrupted; on a CPU the weights come out the same."""
    arguments: list[str | Path] = ["training.reproduce", "--recipe", "smoke"]
    arguments += ["--model", work / "unet3d-smoke"]
    arguments += ["--cubes", work / "cubes", "--run-folder", work / "again"]
    result = json.loads(call(*TWO_PROCESSES[1:], *arguments, OMP_NUM_THREADS="1"))
    print(json.dumps(result, indent=2), file=sys.stderr)
    if not result["same_weights"]:
        raise SystemExit("the killed and resumed run and the reproduced one differ in weights")


if __name__ == "__main__":
    sys.exit(main())
