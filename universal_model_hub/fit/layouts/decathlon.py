"""Data sets with a ``dataset.json``: the Medical Segmentation Decathlon's and nnU-Net's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json
from universal_model_hub.fit.cases import Case, CaseSet, Finding, Split
from universal_model_hub.fit.layouts.names import by_channel, inside, scans_in, stem, subject_of

MR_WORDS = ("mr", "t1", "t2", "flair", "pd", "dwi", "adc")


def is_nnunet(described: Path) -> bool:
    """Whether a dataset.json lies in an nnU-Net raw folder: scans end in a channel's number."""
    folder = described.parent / "imagesTr"
    names = [stem(path) for path in scans_in(folder)] if folder.is_dir() else []
    return bool(names) and all(name[-5:-4] == "_" and name[-4:].isdigit() for name in names)


def read_nnunet(described: Path) -> CaseSet:
    """Read an nnU-Net raw folder: ``imagesTr/NAME_0000.*`` and ``labelsTr/NAME.*``.

    ``imagesTs`` is the test part where ``labelsTs`` has labels for it.
    """
    content, root = _content(described), described.parent
    channels = _named(content.get("channel_names", content.get("modality")))
    cases: list[Case] = []
    findings: list[Finding] = []
    for end, split in (("Tr", None), ("Ts", "test")):
        images, labels = root / f"images{end}", root / f"labels{end}"
        if not images.is_dir() or (end == "Ts" and not labels.is_dir()):
            continue
        maps = {stem(path): path for path in scans_in(labels)} if labels.is_dir() else {}
        for name, found in by_channel(scans_in(images)).items():
            paths = tuple(found[number] for number in sorted(found))
            missing = sorted(set(range(len(channels) or len(found))) - set(found))
            if missing:
                text = f"Expected channel {missing[0]:04d} of this case, got none."
                findings.append(Finding("error", str(images / name), text))
            elif name not in maps:
                text = f"Expected a label map {labels.name}/{name}, got none."
                findings.append(Finding("error", str(images / name), text))
            else:
                cases.append(_case(name, paths, maps[name], split))  # type: ignore[arg-type]
    return _set(described, content, cases, findings, channels, "nnunet")


def read_msd(described: Path) -> CaseSet:
    """Read a Decathlon task: the pairs that ``training`` lists. ``test`` scans have no labels.

    A file with several channels (4D) cannot be used as it is; ``check`` names it.
    """
    content, root = _content(described), described.parent
    channels = _named(content.get("modality", content.get("channel_names")))
    entries = content.get("training")
    if not isinstance(entries, list):
        raise ConfigError(f"Expected a list 'training' in {described}, got none.")
    cases: list[Case] = []
    findings: list[Finding] = []
    for number, entry in enumerate(entries):
        pair = entry if isinstance(entry, Mapping) else {}
        image, label = pair.get("image"), pair.get("label")
        if not isinstance(image, str) or not isinstance(label, str):
            text = f"Expected image and label in entry {number} of training, got {entry!r:.60}."
            findings.append(Finding("error", described.name, text))
            continue
        paths = [root / image, root / label]
        outside = [str(path) for path in paths if not inside(path, root)]
        if outside:
            text = f"Expected files below {root}, got {outside[0]}."
            findings.append(Finding("error", described.name, text))
            continue
        missing = [path for path in paths if not path.exists()]
        findings += [
            Finding("error", str(path), f"Listed in {described.name}, but there is no such file.")
            for path in missing
        ]
        if not missing:
            cases.append(_case(stem(paths[0]), (paths[0],), paths[1], None))
    return _set(described, content, cases, findings, channels[:1], "msd")


def _content(described: Path) -> Mapping[str, Any]:
    content = parse_json(described.read_bytes())
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
