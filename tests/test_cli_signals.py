"""Ctrl-C, SIGTERM and closed pipes, in processes of their own."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from universal_model_hub.cli.main import main
from universal_model_hub.volume import Volume, load_volume, save_volume

ROOT = Path(__file__).parent.parent

# Writes scans of one value each, one after the other, through the command's own door.
WRITER = """
import sys
import numpy as np
from universal_model_hub.cli import list as list_command
from universal_model_hub.cli.main import main
from universal_model_hub.volume import Volume, save_volume

def run(args):
    noise = np.random.default_rng(0).integers(0, 99, (64, 64, 64)).astype(np.int16)
    print("ready", flush=True)
    for value in range(1, 10_000):
        noise[0, 0, 0] = noise[-1, -1, -1] = value
        save_volume(Volume(noise, np.eye(4)), sys.argv[1], force=True)

list_command.run = run
sys.exit(main(["list"]))
"""


def start(*command: object, **options: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("seed", range(6))
def test_c04_a_signal_in_the_middle_of_writing_leaves_the_old_or_the_new_file(tmp_path, seed):
    signum = [signal.SIGINT, signal.SIGTERM][seed % 2]
    output = tmp_path / "labels.nii.gz"
    save_volume(Volume(np.full((64, 64, 64), 7, np.int16), np.eye(4)), output)
    with start("-c", WRITER, output) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.Random(seed).uniform(0, 0.4))
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert errors == f"umh: error: stopped by {signum.name}; no unfinished file was left behind\n"
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]
    voxels = load_volume(output).array
    assert voxels[0, 0, 0] == voxels[-1, -1, -1] > 0


def test_c04_a_second_signal_does_not_interrupt_the_cleaning_up(tmp_path):
    output = tmp_path / "labels.nii.gz"
    with start("-c", WRITER, output) as process:
        process.stdout.readline()
        time.sleep(0.1)
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert {path.name for path in tmp_path.iterdir()} <= {"labels.nii.gz"}


def test_c04_a_signal_that_a_library_wraps_still_counts(tmp_path):
    wrapped = WRITER.replace(
        "    for value",
        "    try:\n        import time; time.sleep(20)\n"
        "    except BaseException as error:\n        raise RuntimeError('oops') from error\n"
        "    for value",
    )
    with start("-c", wrapped, tmp_path / "x.nii") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_c04_a_signal_in_a_finalizer_still_counts(tmp_path, signum):
    # Python ignores what is raised in __del__; here the signal can come nowhere else.
    finalizer = (
        "class Finalizer:\n"
        "    def __del__(self):\n"
        "        import time\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(20)\n"
        "def run(args):\n"
        "    Finalizer()"
    )
    with start("-c", WRITER.replace("def run(args):", finalizer), tmp_path / "x.nii") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert errors == f"umh: error: stopped by {signum.name}; no unfinished file was left behind\n"
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "x.nii"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_c04_a_stopped_command_leaves_nothing(tmp_path, seed):
    noise = np.random.default_rng(seed).integers(-1000, 1000, (200, 200, 200)).astype(np.int16)
    save_volume(Volume(noise, np.eye(4)), tmp_path / "scan.nii")
    out = tmp_path / "out"
    out.mkdir()
    command = ["preprocess", tmp_path / "scan.nii", "-o", out / "cube.nii.gz", "--modality", "CT"]
    with start("-m", "universal_model_hub", *command) as process:
        time.sleep(random.Random(seed).uniform(0.5, 5))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert load_volume(out / "cube.nii.gz").shape == (200, 200, 200)
    else:
        assert process.returncode == 143
        assert errors.count("\n") == 1
        assert list(out.iterdir()) == []


def test_the_old_signal_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert main(["list", "--json"]) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"]])
def test_c09_a_reader_that_has_enough_is_no_error(arguments):
    with start("-m", "universal_model_hub", *arguments) as process:
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=30)
    assert errors == ""
    assert process.returncode == 0


def test_c09_without_stdout_and_stderr_the_exit_code_remains():
    command = f"{sys.executable} -m universal_model_hub list nothing --bad >&- 2>&-"
    finished = subprocess.run(["sh", "-c", command], cwd=ROOT, check=False)
    assert finished.returncode == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["segment", "--help"], ["list"], ["list", "--json"]]
)
def test_c10_help_version_and_list_import_nothing_heavy(arguments):
    # Without these modules it takes a tenth of a second; torch alone takes two.
    code = (
        "import sys; from universal_model_hub.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'nibabel', 'huggingface_hub', 'safetensors', 'tqdm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout
