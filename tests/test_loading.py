"""Loading and saving: every pair of file and function, heads, channels, and bad weights."""

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from universal_model_hub import assemble as assemble_module
from universal_model_hub import loading
from universal_model_hub.assemble import LoadReport, adapt_input
from universal_model_hub.config import read_config
from universal_model_hub.errors import (
    ConfigError,
    IntegrityError,
    UniversalModelError,
    WeightsError,
)
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.loading import (
    load_classifier,
    load_encoder,
    load_segmenter,
    load_unet,
    save_pretrained,
)
from universal_model_hub.networks.unet3d import Encoder, UNet3D
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.tensors import read_metadata

LOADERS = {
    "encoder": load_encoder,
    "unet": load_unet,
    "segmenter": load_segmenter,
    "classifier": load_classifier,
}
FIRST = "encoder.levels.0.units.0.conv.weight"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cube(channels: int = 1, side: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1, channels, side, side, side), generator=generator)


def alive(model: nn.Module) -> nn.Module:
    """Fill the running statistics and keep the signal's size, so that outputs differ, in place."""
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(torch.linspace(-0.2, 0.2, len(value)))
        elif name.endswith("conv.weight"):
            value.mul_(2.4)
        elif name.endswith("num_batches_tracked"):
            value.fill_(5)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """One small module of each kind, with different weights each."""
    torch.manual_seed(1)
    encoder = Encoder(width=2)
    return {
        "encoder": alive(Encoder(width=2)),
        "unet": alive(UNet3D(width=2)),
        "segmenter": alive(UNet3D(out_channels=3, width=2, activation=None)),
        "classifier": alive(Classifier(encoder, ClassificationHead(encoder.num_features, 3))),
    }


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory) -> dict[str, Path]:
    """The folder of each of ``models``; tests copy before they change one."""
    root = tmp_path_factory.mktemp("saved")
    return {kind: save_pretrained(model, root / kind) for kind, model in models.items()}


@pytest.fixture
def unet_folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved["unet"], tmp_path / "unet"))


def rewrite(folder: Path, change) -> Path:
    """Change the tensors of a folder with the library's own writer, and drop the config's hash."""
    path = folder / "model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    safetensors.torch.save_file(change(state) or state, path, metadata={"format": "pt"})
    edit_config(folder, sha256=None)
    return folder


def edit_config(folder: Path, **entries: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return folder


def names(entries) -> set[str]:
    return {entry.name for entry in entries}


# What each function gives for a file of each kind without further arguments, or how it refuses.
MATRIX = {
    ("encoder", "encoder"): "encoder",
    ("encoder", "unet"): "encoder",
    ("encoder", "segmenter"): "encoder",
    ("encoder", "classifier"): "encoder",
    ("unet", "encoder"): WeightsError,
    ("unet", "unet"): "whole",
    ("unet", "segmenter"): "whole",
    ("unet", "classifier"): WeightsError,
    ("segmenter", "encoder"): WeightsError,
    ("segmenter", "unet"): ConfigError,
    ("segmenter", "segmenter"): "whole",
    ("segmenter", "classifier"): WeightsError,
    ("classifier", "encoder"): ConfigError,
    ("classifier", "unet"): ConfigError,
    ("classifier", "segmenter"): ConfigError,
    ("classifier", "classifier"): "whole",
}


@pytest.mark.parametrize(("wanted", "kind"), MATRIX)
def test_every_kind_of_file_in_every_function(models, saved, wanted, kind):
    expected = MATRIX[wanted, kind]
    if not isinstance(expected, str):
        with pytest.raises(expected, match=rf"kind {kind}\b"):
            LOADERS[wanted](saved[kind])
        return
    original = models[kind]
    if expected == "encoder" and kind != "encoder":
        original = original.encoder
    model = LOADERS[wanted](saved[kind])
    assert not model.training
    assert type(model) is type(original)
    state = model.state_dict()
    assert state.keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)
    with torch.no_grad():
        ours, theirs = model(cube()), original(cube())
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert model.head_trained
    assert model.preprocessing == Preprocessing()
    assert model.config.kind == (kind if expected == "whole" else "encoder")


NEW_HEADS = [(w, k) for w, k in MATRIX if w != "encoder" and MATRIX[w, k] is not WeightsError]


@pytest.mark.parametrize(("wanted", "kind"), NEW_HEADS)
def test_a_number_makes_a_new_head_on_the_saved_rest(models, saved, wanted, kind):
    number = {"out_channels": 5} if wanted == "unet" else {"num_classes": 5}
    torch.manual_seed(7)
    model = LOADERS[wanted](saved[kind], **number)
    torch.manual_seed(7)
    again = LOADERS[wanted](saved[kind], **number)
    torch.manual_seed(8)
    other = LOADERS[wanted](saved[kind], **number)
    logits = model(cube())
    assert logits.shape[1] == 5
    assert torch.equal(logits, again(cube()))
    assert not torch.equal(logits, other(cube()))
    original = models[kind].encoder if kind != "encoder" else models[kind]
    for a, b in zip(model.encoder(cube()), original(cube()), strict=True):
        assert torch.equal(a, b)
    assert not model.head_trained
    assert not model.config.head_trained
    assert {name.split(".")[0] for name in names(model.load_report.new)} == {"head"}
    spread = next(model.head.parameters()).std()
    assert 0.01 < spread < 1  # torch's own initialization, not zeros and not rubbish
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("wanted", "kind"), [("unet", "encoder"), ("segmenter", "classifier")])
def test_w12_weights_without_a_decoder_are_named_by_kind(saved, wanted, kind):
    number = {"out_channels": 2} if wanted == "unet" else {"num_classes": 2}
    with pytest.raises(WeightsError, match=rf"kind {kind}.*load_encoder"):
        LOADERS[wanted](saved[kind], **number)


def test_the_restoration_head_is_kept_and_a_single_new_channel_gives_logits(models, saved):
    restored = load_unet(saved["unet"])
    assert restored.activation == "sigmoid"
    assert torch.equal(restored(cube()), models["unet"](cube()))
    fresh = load_unet(saved["unet"], out_channels=1)
    assert fresh.activation is None
    assert fresh.config.kind == "segmenter"
    assert not fresh.head_trained
    assert not torch.equal(fresh.head.weight, restored.head.weight)


def test_a_saved_head_is_taken_when_the_number_agrees(models, saved):
    model = load_segmenter(saved["segmenter"], 3)
    assert torch.equal(model.head.weight, models["segmenter"].head.weight)
    assert model.head_trained
    assert not load_segmenter(saved["segmenter"], 4).head_trained
    classifier = load_classifier(saved["classifier"], 3)
    assert torch.equal(classifier.head.linear.weight, models["classifier"].head.linear.weight)


def test_the_report_says_what_became_of_each_tensor(saved):
    whole = load_unet(saved["unet"]).load_report
    assert len(whole.loaded) == 106
    assert (whole.adapted, whole.new, whole.unused) == ((), (), ())
    encoder = load_encoder(saved["unet"], in_channels=3).load_report
    assert (len(encoder.loaded), len(encoder.unused)) == (55, 50)
    assert [(e.name, e.shape, e.saved_shape) for e in encoder.adapted] == [
        (FIRST, (2, 3, 3, 3, 3), (2, 1, 3, 3, 3))
    ]
    segmenter = load_segmenter(saved["unet"], 4).load_report
    assert [(e.name, e.shape) for e in segmenter.new] == [
        ("head.weight", (4, 4, 1, 1, 1)),
        ("head.bias", (4,)),
    ]
    assert names(segmenter.unused) == {"head.weight", "head.bias"}
    assert (whole.verified, whole.source) == ("local", str(saved["unet"]))
    assert whole.sha256 == read_config(saved["unet"] / "config.json").sha256
    assert "106 loaded, 0 adapted, 0 new, 0 unused" in str(whole)


@pytest.mark.parametrize("wanted", LOADERS)
@pytest.mark.parametrize("channels", [2, 3, 7])
def test_one_channel_to_many_answers_a_repeated_input_as_before(saved, wanted, channels):
    number = {"num_classes": 3} if wanted in ("segmenter", "classifier") else {}
    kind = wanted if number else "unet"
    one = LOADERS[wanted](saved[kind], **number)
    many = LOADERS[wanted](saved[kind], in_channels=channels, **number)
    x = cube()
    for a, b in zip(one(x), many(x.expand(1, channels, 9, 9, 9)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert many.config.argument("in_channels") == channels


def test_many_channels_to_one_sums(tmp_path):
    model = alive(UNet3D(in_channels=4, width=2))
    folder = save_pretrained(model, tmp_path / "four")
    with pytest.warns(UserWarning, match="4 input channels; their weights are summed to 1"):
        single = load_unet(folder)
    weight = model.encoder.levels[0].units[0].conv.weight
    torch.testing.assert_close(single.state_dict()[FIRST], weight.sum(dim=1, keepdim=True))
    repeated = model(cube().expand(1, 4, 9, 9, 9))
    torch.testing.assert_close(single(cube()), repeated, atol=1e-5, rtol=0)
    assert load_unet(folder, in_channels=None).encoder.in_channels == 4


@pytest.mark.parametrize(("old", "new"), [(2, 5), (5, 2), (3, 6), (6, 4), (4, 4), (1, 1)])
def test_channels_are_dealt_out_in_turn_and_their_sum_is_kept(old, new):
    weight = torch.randn(2, old, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    adapted = adapt_input(weight, new)
    assert adapted.shape[1] == new
    torch.testing.assert_close(adapted.sum(dim=1), weight.sum(dim=1))
    for j in range(old if new > old else new):  # the channels that share one number mod the fewer
        few = min(old, new)
        torch.testing.assert_close(adapted[:, j::few].sum(dim=1), weight[:, j::few].sum(dim=1))
    if old == new:
        assert torch.equal(adapted, weight)


def test_out_indices_normalization_and_checkpointing_arrive(saved):
    encoder = load_encoder(saved["unet"], out_indices=(1, -1), checkpointing=True)
    assert [info.level for info in encoder.feature_info] == [1, 3]
    assert encoder.checkpointing
    batch = load_unet(saved["unet"], normalization="batch", checkpointing=True)
    assert batch.encoder.normalization == "batch"
    assert batch.config.argument("normalization") == "batch"
    assert batch.decoder.checkpointing
    assert not torch.equal(batch(cube()), load_unet(saved["unet"])(cube()))


def bytes_read() -> int:
    counter = Path("/proc/self/io")
    return int(counter.read_text().split()[1]) if counter.exists() else 0


def test_only_the_tensors_of_the_encoder_are_read(tmp_path, monkeypatch):
    folder = save_pretrained(UNet3D(width=8), tmp_path / "wide")
    read, asked, spent = assemble_module.read_tensors, [], []

    def counting(path, wanted, **options):
        asked.extend(wanted)
        before = bytes_read()
        tensors = read(path, wanted, **options)
        spent.append(bytes_read() - before)
        return tensors

    monkeypatch.setattr(assemble_module, "read_tensors", counting)
    encoder = load_encoder(folder)
    assert len(asked) == 56
    assert all(name.startswith("encoder.") for name in asked)
    assert len(spent) == 1
    assert spent[0] < 1.1 * sum(4 * p.numel() for p in encoder.parameters())


def test_loading_draws_no_random_numbers_and_leaves_nothing_on_the_meta_device(saved):
    before = torch.get_rng_state()
    model = load_unet(saved["unet"])
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    counters = [v for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")]
    assert [(c.dtype, int(c)) for c in counters] == [(torch.int64, 5)] * 14


def test_a_default_device_of_the_caller_does_not_matter(models, saved):
    with torch.device("meta"):
        model = load_segmenter(saved["unet"], 2, in_channels=3)
        encoder = load_encoder(pretrained=False)
    for module in (model, encoder):
        assert {value.device.type for value in module.state_dict().values()} == {"cpu"}
    assert torch.equal(model.decoder.levels[0].up.bias, models["unet"].decoder.levels[0].up.bias)


@pytest.mark.parametrize("name", ["unet3d-compact", "unet3d"])
def test_without_pretrained_weights_no_file_is_needed(name, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("opened a file"))
    torch.manual_seed(3)
    encoder = load_encoder(name, pretrained=False, in_channels=2)
    torch.manual_seed(3)
    width = {"unet3d-compact": 8, "unet3d": 32}[name]
    reference = Encoder(in_channels=2, width=width)
    assert all(
        torch.equal(value, reference.state_dict()[key])
        for key, value in encoder.state_dict().items()
    )
    assert encoder.load_report.verified is None
    assert len(encoder.load_report.new) == 56
    assert not encoder.training


def test_without_pretrained_weights_heads_are_untrained(saved):
    unet = load_unet(pretrained=False)
    assert (unet.activation, unet.head_trained, unet.config.name) == (
        "sigmoid",
        False,
        "unet3d-compact",
    )
    segmenter = load_segmenter(pretrained=False, num_classes=2)
    assert segmenter(cube(side=4)).shape == (1, 2, 4, 4, 4)
    assert load_classifier(pretrained=False, num_classes=2)(cube(side=4)).shape == (1, 2)
    like = load_segmenter(saved["segmenter"], pretrained=False)
    assert like.config.num_outputs == 3
    assert not like.head_trained
    with pytest.raises(ConfigError, match="num_classes"):
        load_segmenter(pretrained=False)
    for name, hint in {
        "unet3": "unet3d",
        "hf-hub:org/name@main": "nothing is downloaded",
        "org/name": "hf-hub:org/name",
    }.items():
        with pytest.raises(ConfigError, match=hint):
            load_unet(name, pretrained=False)


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (load_unet, {"out_channels": 0}, "out_channels"),
        (load_unet, {"out_channels": 10**9}, "out_channels"),
        (load_unet, {"in_channels": -1}, "in_channels"),
        (load_unet, {"in_channels": 1.0}, "in_channels"),
        (load_segmenter, {"num_classes": True}, "out_channels"),
        (load_classifier, {"num_classes": 0}, "num_classes"),
        (load_unet, {"normalization": "layer"}, "normalization"),
        (load_encoder, {"out_indices": (9,)}, "out_indices"),
        (load_unet, {"device": "abacus"}, "device"),
        (load_unet, {"device": "cuda:99"}, "device"),
    ],
)
def test_bad_options_are_refused_by_name(saved, loader, options, message):
    with pytest.raises(ConfigError, match=message):
        loader(saved["unet"], **options)


def test_a_name_may_be_a_folder_a_scheme_or_the_weight_file(saved, models):
    folder = saved["unet"]
    for name in (folder, str(folder), f"local-dir:{folder}", folder / "model.safetensors"):
        assert torch.equal(load_unet(name).head.weight, models["unet"].head.weight)


# Bad weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_w01_w03_a_truncated_file(unet_folder, keep):
    path = unet_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    edit_config(unet_folder, sha256=None)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_encoder(unet_folder)


def test_a_flipped_bit_is_caught_by_the_configs_hash(unet_folder):
    path = unet_folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        load_unet(unet_folder)


def test_w07_nan_names_the_tensor(unet_folder):
    def poison(state):
        state["decoder.levels.1.up.bias"][0] = float("nan")

    rewrite(unet_folder, poison)
    with pytest.raises(WeightsError, match=r"decoder\.levels\.1\.up\.bias"):
        load_unet(unet_folder)
    assert load_encoder(unet_folder).load_report.loaded  # its tensors are sound


def test_w08_missing_unexpected_and_prefixed_names_are_listed(unet_folder, saved, tmp_path):
    rewrite(unet_folder, lambda s: {f"module.{name}": value for name, value in s.items()})
    with pytest.raises(WeightsError, match=r"106 missing.*106 unexpected.*DataParallel") as caught:
        load_encoder(unet_folder)
    assert str(caught.value).count("module.") == 5
    other = Path(shutil.copytree(saved["unet"], tmp_path / "other"))
    rewrite(other, lambda s: {("extra" if n == FIRST else n): v for n, v in s.items()})
    with pytest.raises(WeightsError, match=rf"1 missing \({FIRST}\), 1 unexpected \(extra\)"):
        load_unet(other)


def test_w09_another_shape_or_dtype_is_refused_before_anything_is_read(unet_folder, monkeypatch):
    monkeypatch.setattr(assemble_module, "read_tensors", lambda *a, **k: pytest.fail("read"))
    edit_config(unet_folder, arguments={"width": 1024}, sha256=None)  # would be 78 GB
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"expected encoder.*with shape \(1024, 1, 3, 3, 3\)"):
        load_unet(unet_folder)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    edit_config(unet_folder, arguments={"width": 2})
    for dtype in (torch.float64, torch.int64):
        rewrite(unet_folder, lambda s, d=dtype: {**s, "head.bias": s["head.bias"].to(d)})
        with pytest.raises(WeightsError, match=r"expected head\.bias with dtype F32"):
            load_unet(unet_folder)
    counter = "encoder.levels.3.units.1.norm.num_batches_tracked"
    rewrite(unet_folder, lambda s: {**s, "head.bias": torch.zeros(1), counter: torch.tensor(1.0)})
    with pytest.raises(WeightsError, match="num_batches_tracked with dtype I64, got F32"):
        load_unet(unet_folder)


def test_w11_a_head_of_another_class_count(unet_folder):
    rewrite(unet_folder, lambda s: {**s, "head.weight": torch.zeros(5, 4, 1, 1, 1)})
    with pytest.raises(WeightsError, match=r"head\.weight.*\(5, 4, 1, 1, 1\).*load the encoder"):
        load_unet(unet_folder)
    assert load_encoder(unet_folder).load_report.loaded
    assert load_segmenter(unet_folder, 2).load_report.new


@pytest.mark.parametrize("config", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_w13_a_broken_config_beside_good_weights(unet_folder, config):
    (unet_folder / "config.json").write_bytes(config)
    with pytest.raises(ConfigError, match=r"config\.json|JSON"):
        load_encoder(unet_folder)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_encoder(unet_folder, pretrained=False)


def test_w13_a_billion_channels_cost_nothing(unet_folder):
    edit_config(unet_folder, arguments={"width": 10**9})
    with pytest.raises(ConfigError, match="width"):
        load_unet(unet_folder)


def test_w16_a_path_in_the_config_is_never_followed(unet_folder, tmp_path):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    edit_config(unet_folder, name="../secret")
    with pytest.raises(ConfigError, match="plain name"):
        load_unet(unet_folder)
    edit_config(unet_folder, name="unet", weights="../secret.safetensors")
    with pytest.warns(UserWarning, match="weights"):
        assert len(load_unet(unet_folder).load_report.loaded) == 106


def test_w17_code_beside_the_weights_is_never_imported(unet_folder, tmp_path):
    trap = tmp_path / "trap"
    for name in ("modeling.py", "__init__.py", "hubconf.py", "sitecustomize.py"):
        (unet_folder / name).write_text(f"open({str(trap)!r}, 'w')")
    load_unet(unet_folder)
    assert not trap.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w19_half_precision_weights_become_float32(unet_folder, dtype):
    def halve(state):
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}

    rewrite(unet_folder, halve)
    model = load_unet(unet_folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    half = safetensors.torch.load_file(unet_folder / "model.safetensors")
    assert torch.equal(model.head.weight, half["head.weight"].float())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::universal_model_hub.config.ConfigWarning")
def test_property_only_our_errors_escape_from_a_mutated_folder(saved, tmp_path, data):
    folder = tmp_path / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved["unet"], folder)
    edit_config(folder, sha256=None)
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 2000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    loader = data.draw(st.sampled_from([load_unet, load_encoder]))
    try:
        model = loader(folder)
    except UniversalModelError:
        return
    assert all(torch.isfinite(p).all() for p in model.parameters())


# Saving -----------------------------------------------------------------------------------------


def test_a_saved_folder_holds_three_files_and_its_own_hash(models, tmp_path):
    folder = save_pretrained(
        models["segmenter"],
        tmp_path / "left-atrium",
        labels={0: "background", 1: "left atrium"},
        license="apache-2.0",
        provenance={"commit": "abc", "seed": 3, "hours": 1.5, "date": "today", "hardware": "cpu"},
        metrics=[{"task": "las_ct", "metric": "IoU", "value": 0.5}],
        seen={"modalities": ["CT"]},
    )
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert [p.name for p in tmp_path.iterdir()] == ["left-atrium"]
    config = read_config(folder / "config.json")
    assert (config.name, config.kind, config.license) == ("left-atrium", "segmenter", "apache-2.0")
    assert config.labels == {0: "background", 1: "left atrium"}
    assert config.provenance["hours"] == 1.5
    assert dict(config.arguments) == {"width": 2, "out_channels": 3, "activation": None}
    metadata = read_metadata(folder / "model.safetensors")
    assert metadata == {"format": "pt", "provenance": '{"commit": "abc", "seed": 3}'}
    again = load_segmenter(folder)
    assert again.config.labels == config.labels
    assert again.config.metrics == config.metrics
    assert load_segmenter(folder, 2).config.labels is None
    assert load_encoder(folder).config.labels is None


def test_what_was_loaded_is_saved_again_unchanged(saved, tmp_path):
    for kind, folder in saved.items():
        model = LOADERS[kind](folder)
        again = save_pretrained(model, tmp_path / kind)
        for file in ("model.safetensors", "config.json", "README.md"):
            assert (again / file).read_bytes() == (folder / file).read_bytes()


def test_a_wrapped_module_is_saved_as_what_it_wraps(models, saved, tmp_path):
    wrapped = {
        "parallel": nn.DataParallel(models["unet"]),
        "compiled": torch.compile(models["unet"]),
    }
    for name, module in wrapped.items():
        folder = save_pretrained(module, tmp_path / name)
        data = (folder / "model.safetensors").read_bytes()
        assert data == (saved["unet"] / "model.safetensors").read_bytes()


def test_an_untrained_head_stays_untrained_until_said_otherwise(saved, tmp_path):
    model = load_segmenter(saved["unet"], 2)
    assert not load_segmenter(save_pretrained(model, tmp_path / "a")).head_trained
    model.head_trained = True
    assert load_segmenter(save_pretrained(model, tmp_path / "b")).head_trained
    assert not load_segmenter(
        save_pretrained(model, tmp_path / "c", head_trained=False)
    ).head_trained


def test_an_adapted_network_is_saved_with_its_channels(saved, tmp_path):
    model = load_unet(saved["unet"], in_channels=3, normalization="batch")
    again = load_unet(save_pretrained(model, tmp_path / "three"), in_channels=None)
    assert again.encoder.in_channels == 3
    assert again.encoder.normalization == "batch"
    assert again.load_report.adapted == ()
    x = cube(channels=3)
    assert torch.equal(again(x), model(x))


def test_saving_refuses_to_overwrite_without_force(models, tmp_path):
    folder = save_pretrained(models["unet"], tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="force"):
        save_pretrained(models["encoder"], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_pretrained(models["encoder"], folder, force=True)
    assert load_encoder(folder).config.kind == "encoder"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        save_pretrained(models["unet"], tmp_path / "file")
    with pytest.raises(ConfigError, match="folder that can be written"):
        save_pretrained(models["unet"], tmp_path / "file" / "below")


def test_saving_keeps_other_files_of_the_folder(models, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(models["encoder"], tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert load_encoder(tmp_path).load_report.loaded


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.head.weight.data.fill_(float("inf")), WeightsError, r"head\.weight"),
        (lambda m: m.add_module("extra", nn.Linear(1, 1)), WeightsError, "has others"),
        (lambda m: m.double(), WeightsError, "float64"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, change, error, message):
    model = UNet3D(width=1)
    change(model)
    with pytest.raises(error, match=message):
        save_pretrained(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../a"}, "plain name"),
        ({"labels": {9: "far"}}, "labels below"),
    ],
)
def test_a_bad_entry_of_the_config_is_not_saved(models, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        save_pretrained(models["unet"], tmp_path / "a", **options)
    with pytest.raises(WeightsError, match="Linear"):
        save_pretrained(nn.Linear(1, 1), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(models, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("universal_model_hub.saving.write_json", full)
    with pytest.raises(ConfigError, match="No space left"):
        save_pretrained(models["unet"], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_contracts_names_are_what_loading_offers():
    assert loading.DEFAULT == "unet3d-compact"
    assert {"load_encoder", "load_unet", "load_segmenter", "load_classifier"} < set(loading.__all__)
    assert isinstance(load_encoder(pretrained=False).load_report, LoadReport)


def test_changed_weights_do_not_keep_the_claims_of_those_they_come_from(models, tmp_path):
    claims = {"metrics": [{"task": "t", "metric": "IoU", "value": 0.9, "source": "results/x"}]}
    claims["provenance"] = {"commit": "abc", "run": {"hours": 2}, "date": "2026-11-22"}
    first = save_pretrained(models["segmenter"], tmp_path / "first", head_trained=True, **claims)
    same = read_config(save_pretrained(load_segmenter(first), tmp_path / "same") / "config.json")
    assert (same.name, same.provenance["commit"]) == ("first", "abc")
    assert same.metrics[0]["value"] == 0.9

    model = load_segmenter(first)
    with torch.no_grad():
        model.head.weight.add_(1)
    changed = read_config(save_pretrained(model, tmp_path / "changed") / "config.json")
    assert changed.name == "changed"
    assert changed.metrics == ()
    base = {"name": "first", "sha256": read_config(first / "config.json").sha256}
    assert changed.provenance == {"base": base}
    assert b"hours" not in (first / "model.safetensors").read_bytes()
