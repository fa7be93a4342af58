"""Data sets with a ``dataset.json``: the Medical Segmentation Decathlon's and nnU-Net's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json
from universal_model_hub.fit.data.cases import Case, CaseSet, Finding, Split
from universal_model_hub.fit.data.layouts.names import (
    CHANNEL,
    SUFFIXES,
    by_channel,
    by_name,
    inside,
    scans_in,
    stem,
    subject_of,
)

PARTS: Mapping[str, Split | None] = {"Tr": None, "Ts": "test"}  # ending of a folder to its side
MR_WORDS = ("mr", "t1", "t2", "flair", "pd", "dwi", "adc")


def is_nnunet(described: Path) -> bool:
    """Whether a dataset.json lies in an nnU-Net raw folder.

    It names ``channel_names`` (version 2), or scans end in a channel's number that the list
    ``training`` leaves out (version 1). In the Decathlon's the list has the files' own names.

    Raises:
        ConfigError: If the file cannot be read.
    """
    content, root = _content(described), described.parent
    if "channel_names" in content:
        return True
    folder = root / "imagesTr"
    names = [stem(path) for path in scans_in(folder)] if folder.is_dir() else []
    entries = content.get("training")
    listed = [_pair(entry)[0] for entry in entries] if isinstance(entries, list) else []
    literal = any(image is not None and (root / image).exists() for image in listed)
    return not literal and any(name.endswith("_0000") for name in names)


def read_nnunet(described: Path) -> CaseSet:
    """Read an nnU-Net raw folder: ``imagesTr/NAME_0000.*`` and ``labelsTr/NAME.*``.

    ``imagesTs`` is the test part where ``labelsTs`` has labels for it.

    Raises:
        ConfigError: If dataset.json cannot be used, or names a kind of files that is not read.
    """
    content, root = _content(described), described.parent
    ending = content.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise ConfigError(f"Expected a file_ending of {', '.join(SUFFIXES)}, got {ending!r:.40}.")
    channels = _named(content.get("channel_names", content.get("modality")))
    cases: list[Case] = []
    findings: list[Finding] = _ignored(described, content)
    for end, split in PARTS.items():
        images, labels = root / f"images{end}", root / f"labels{end}"
        if images.is_dir() and (end == "Tr" or labels.is_dir()):
            found, told = _nnunet_part(images, labels, channels, split)
            cases += found
            findings += told
    return _set(described, content, cases, findings, channels, "nnunet")


def _nnunet_part(
    images: Path, labels: Path, channels: Sequence[str], split: Split | None
) -> tuple[list[Case], list[Finding]]:
    scans = scans_in(images)
    maps, findings = by_name(scans_in(labels) if labels.is_dir() else (), stem)
    for path in scans:
        if not CHANNEL.match(stem(path)):
            text = "Expected the number of a channel in its name, NAME_0000: left out."
            findings.append(Finding("error", str(path), text))
    grouped, repeated = by_channel(path for path in scans if CHANNEL.match(stem(path)))
    findings += repeated
    cases = []
    for name, found in grouped.items():
        wanted = set(range(len(channels) or max(found) + 1))
        for number in sorted(wanted - set(found)):
            text = f"Expected channel {number:04d} of this case, got none."
            findings.append(Finding("error", str(images / name), text))
        for number in sorted(set(found) - wanted):
            text = f"Expected {len(channels)} channels as dataset.json names, got this one too."
            findings.append(Finding("error", str(found[number]), text))
        if name not in maps:
            text = f"Expected a label map {labels.name}/{name}, got none."
            findings.append(Finding("error", str(images / name), text))
        elif set(found) == wanted:
            paths = tuple(found[number] for number in sorted(found))
            cases.append(_case(name, paths, maps[name], split))
    findings += [
        Finding("warning", str(path), f"Expected scans of it in {images.name}, got none: left out.")
        for name, path in maps.items()
        if name not in grouped
    ]
    return cases, findings


def read_msd(described: Path) -> CaseSet:
    """Read a Decathlon task: the pairs that ``training`` lists. ``test`` scans have no labels.

    A file with several channels (4D) cannot be used as it is: a warning says how to split them,
    and ``check_cases`` names each. Entries of ``._*`` files are passed over.

    Raises:
        ConfigError: If dataset.json cannot be used.
    """
    content, root = _content(described), described.parent
    channels = _named(content.get("modality"))
    entries = content.get("training")
    if not isinstance(entries, list):
        raise ConfigError(f"Expected a list 'training' in {described}, got none.")
    cases: list[Case] = []
    findings: list[Finding] = _ignored(described, content)
    if len(channels) > 1:
        text = (
            f"It names {len(channels)} channels ({', '.join(channels)}). Files with several (4D) "
            "have to be split: NAME_0000.nii.gz, NAME_0001.nii.gz, ... in nnU-Net's layout."
        )
        findings.append(Finding("warning", str(described), text))
    for number, entry in enumerate(entries):
        image, label = _pair(entry)
        if image is None or label is None:
            text = f"Expected image and label in entry {number} of training, got {entry!r:.60}."
            findings.append(Finding("error", described.name, text))
            continue
        if Path(image).name.startswith("._"):
            continue
        paths = [root / image, root / label]
        outside = [str(path) for path in paths if not inside(path, root)]
        if outside:
            text = f"Expected files below {root}, got {outside[0]}."
            findings.append(Finding("error", described.name, text))
            continue
        cases.append(_case(stem(paths[0]), (paths[0],), paths[1], None))
    return _set(described, content, cases, findings, channels[:1], "msd")


def _pair(entry: Any) -> tuple[str | None, str | None]:
    """Return image and label of an entry of ``training``; None for what is no text."""
    pair = entry if isinstance(entry, Mapping) else {}
    image, label = pair.get("image"), pair.get("label")
    return image if isinstance(image, str) else None, label if isinstance(label, str) else None


def _ignored(described: Path, content: Mapping[str, Any]) -> list[Finding]:
    """Tell of a label that nnU-Net leaves out of the loss: here it would be a class."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping) or "ignore" not in (*labels, *map(str, labels.values())):
        return []
    text = "Expected no label 'ignore': in the label maps -1 means not annotated. Change them."
    return [Finding("error", str(described), text)]


def _content(described: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(described.read_bytes())
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{described}: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"Expected an object in {described}, got {type(content).__name__}.")
    return content


def _case(name: str, images: tuple[Path, ...], labels: Path, split: Split | None) -> Case:
    return Case(id=name, subject=subject_of(name), images=images, labels=labels, split=split)


def _named(value: Any) -> list[str]:
    """Return channel names in order: ``{"0": "CT"}``."""
    if not isinstance(value, Mapping):
        return []
    return [str(value[key]) for key in sorted(value, key=str)]


def _classes(value: Any) -> dict[int, str] | None:
    """Return label value to name: ``{"0": "background"}``, or nnU-Net 2's other way round."""
    if not isinstance(value, Mapping):
        return None
    pairs: dict[int, str] = {}
    for key, item in value.items():
        if str(key).lstrip("-").isdigit():
            pairs[int(key)] = str(item)
        elif isinstance(item, int):
            pairs[item] = str(key)
        else:
            raise ConfigError(
                f"Expected labels of one value each, got {key}: {item!r:.40}. Regions of several "
                "values have to be written as label maps first."
            )
    return pairs


def _modality(name: str) -> str:
    low = name.lower()
    if low.startswith("ct"):
        return "CT"
    return "MR" if low.startswith(MR_WORDS) else "auto"


def _set(
    described: Path,
    content: Mapping[str, Any],
    cases: list[Case],
    findings: list[Finding],
    channels: list[str],
    layout: str,
) -> CaseSet:
    number = max([len(case.images) for case in cases], default=1)
    modalities = [_modality(name) for name in channels] or ["auto"] * number
    return CaseSet(
        task="segmentation",
        cases=tuple(cases),
        modalities=tuple(modalities),
        classes=_classes(content.get("labels")),
        layout=layout,
        source=described.parent,
        findings=tuple(findings),
    )
