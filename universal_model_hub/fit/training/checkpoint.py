"""Checkpoints: everything needed to go on with a run, written whole, hashed, and as plain data.

A checkpoint is a folder ``step-00001000/`` with three files:

* ``tensors.safetensors``: every tensor of the state, under names that this module makes;
* ``state.json``: the rest of the state, and the run's configuration;
* ``manifest.json``: size and SHA-256 of the other two. It is written last, and the folder gets its
  name only when all three are on disk, so a folder with this name is complete or damaged, never
  half written.
"""

import contextlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.files import sha256_of, write_json

STEP_FOLDER = re.compile(r"step-(\d{8,})")
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
TAGS = ("__tensor__", "__float__", "__tuple__", "__items__")


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], config: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write ``state`` as the checkpoint of ``step`` and prune older ones.

    Older checkpoints are removed only after the new one was read back and its hashes agree.

    Args:
        folder: The run's checkpoint folder; made if it is missing.
        step: Finished optimizer steps.
        state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
        config: The run's configuration, JSON values only.
        keep: How many checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If the disk is full or the written files do not read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{step:08d}-{os.getpid()}"
    try:
        temporary.mkdir()
        write_files(temporary, step, state, config)
        verify_checkpoint(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder} "
            f"({type(error).__name__}: {error}). Older checkpoints are untouched; free some disk "
            "space and start the same command again."
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_latest(
    folder: Path, config: Mapping[str, Any], *, override: bool = False
) -> tuple[int, dict[str, Any]] | None:
    """Load the newest complete checkpoint, going back past damaged ones and saying so.

    Args:
        folder: The run's checkpoint folder.
        config: The configuration of the run that wants to go on.
        override: Go on although the configuration differs.

    Returns:
        Step and state, or None if there is no checkpoint yet.

    Raises:
        CheckpointError: If every checkpoint is damaged, or the configuration differs.
    """
    found = list_checkpoints(folder)
    problems = []
    for path in reversed(found):
        try:
            step, state, saved_config = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            warnings.warn(f"{error} Going one checkpoint back.", UserWarning, stacklevel=2)
            continue
        differences = config_differences(saved_config, config)
        if differences and not override:
            raise CheckpointError(
                f"The checkpoint {path} belongs to another configuration: "
                + "; ".join(differences[:10])
                + ". Use the same configuration, another run folder, or --override to go on."
            )
        return step, state
    if problems:
        raise CheckpointError(f"No checkpoint in {folder} can be used. " + " ".join(problems[:3]))
    return None


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Load one checkpoint.

    Returns:
        Step, state, and the configuration it was written under.

    Raises:
        CheckpointError: If a file is missing, damaged, or not what its manifest says.
    """
    verify_checkpoint(path)
    try:
        tensors = load_file(path / TENSORS)
        record = json.loads((path / STATE).read_text())
        state = unpack(record["state"], tensors)
        return int(record["step"]), state, record["config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}: {error})."
        ) from error


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: Naming the file that is missing or differs.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} has no readable {MANIFEST} ({type(error).__name__})."
        ) from error
    for name in (TENSORS, STATE):
        file = path / name
        if not file.is_file() or sha256_of(file) != files.get(name):
            raise CheckpointError(f"{name} of the checkpoint {path} is missing or damaged.")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest step first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def config_differences(old: Any, new: Any, name: str = "") -> list[str]:
    """List where two JSON configurations differ, as ``section.key: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in config_differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    return [] if same else [f"{name}: {old!r} -> {new!r}"]


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for one process at a time; the lock dies with the process.

    The file ``lock`` in the folder names that process.

    Raises:
        ConfigError: If another process runs in this folder.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another run is writing to {folder}. Wait for it, or choose another folder."
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def write_files(
    folder: Path, step: int, state: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Write the three files of a checkpoint into an empty folder, the manifest last."""
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(dict(state), "state", tensors)
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, {"step": step, "state": packed, "config": dict(config)})
    for name in (TENSORS, STATE):
        with (folder / name).open("rb+") as stream:
            os.fsync(stream.fileno())
    hashes = {name: sha256_of(folder / name) for name in (TENSORS, STATE)}
    write_json(folder / MANIFEST, {"schema": 1, "step": step, "files": hashes})
    sync_folder(folder)


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn a state into JSON values, moving its tensors into ``tensors`` under ``name``."""
    if isinstance(value, torch.Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": name}
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": repr(value)}
    if isinstance(value, tuple):
        return {"__tuple__": [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key not in TAGS for key in value):
            return {key: pack(v, f"{name}.{key}", tensors) for key, v in value.items()}
        items = [[key, pack(v, f"{name}.{key}", tensors)] for key, v in value.items()]
        return {"__items__": items}
    raise TypeError(
        f"Expected tensors and plain values in a checkpoint, got {type(value).__name__} at {name}."
    )


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Turn packed JSON values back into the state."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__float__" in value:
        return float(value["__float__"])
    if "__tuple__" in value:
        return tuple(unpack(v, tensors) for v in value["__tuple__"])
    if "__items__" in value:
        return {key: unpack(v, tensors) for key, v in value["__items__"]}
    return {key: unpack(v, tensors) for key, v in value.items()}


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left: the run lock makes sure that nobody writes it now."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
