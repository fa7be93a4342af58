"""What holds for every rival network, as functions that their test files call."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from universal_model_hub import embed, load_classifier, load_encoder, load_segmenter, predict
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.saving import save_pretrained
from universal_model_hub.volume import Volume

Shapes = dict[str, tuple[int, ...]]


def cube(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes_of(state) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def norm_shapes(name: str, channels: int) -> Shapes:
    """The five tensors of a batch norm."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norm statistics and scales that matter, in place; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def all_open(model: nn.Module) -> nn.Module:
    """Let every path carry a gradient: positive kernels, ReLUs far above 0; float64, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data.abs_()
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.constant_(module.bias, 50.0)
    return model.double().eval()


def reach(model: nn.Module, output, block: int, size: int) -> tuple[int, int]:
    """How many voxels below and above [block, block + 8) along X the gradient of an output goes."""
    beyond = []
    for start, stop in ((2, 1), (1, 2)):  # falling, then rising: pooling takes the outermost voxel
        ramp = torch.linspace(start, stop, size, dtype=torch.float64)
        x = ramp[:, None, None].expand(1, 1, size, 8, 8).clone().requires_grad_()
        output(model, x).sum().backward()
        touched = x.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
        beyond.append((block - int(touched[0]), int(touched[-1]) - (block + 7)))
    return max(low for low, _ in beyond), max(high for _, high in beyond)


def check_tile_equals_whole(model: nn.Module, read: slice, core: slice, size: int) -> None:
    """What a tile with its halo gives for its core is what the whole gives."""
    x = cube(1, 1, size, 16, 8)
    with torch.no_grad():
        whole = model(x)[:, :, core]
        part = model(x[:, :, read])[:, :, core.start - read.start : core.stop - read.start]
    assert whole.std() > 1e-3
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-4)


def check_eval_is_a_function_of_each_cube(model: nn.Module) -> None:
    a, b = cube(1, 1, 24, 16, 8), cube(1, 1, 24, 16, 8, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, again, together = model(a), model(a), model(torch.cat([b, a]))
    assert torch.equal(first, again)
    assert first.std() > 1e-3
    torch.testing.assert_close(together[1:], first, atol=1e-4, rtol=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name


def check_learns(model: nn.Module, steps: int = 8, lr: float = 5e-3) -> None:
    """Steps of Adam on one cube lower the cross-entropy, and reach every parameter."""
    model.train()
    x = torch.zeros(2, 1, 32, 32, 16)
    x[:, :, 8:24, 8:24, 4:12] = 1
    x += 0.1 * cube(2, 1, 32, 32, 16)
    labels = (x[:, 0] > 0.5).long()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0], losses
    assert all(p.grad is not None for p in model.parameters())


def check_checkpointing(build) -> None:
    """The same gradients and running statistics, activations kept or recomputed."""
    torch.manual_seed(0)
    plain, saving = build(checkpointing=False).train(), build(checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    x = cube(2, 1, 32, 32, 8)
    for model in (plain, saving):
        (model(x) ** 2).mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-3, msg=name)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name


def check_folders(network: nn.Module, folder: Path) -> None:
    """A network, its encoder and a classifier of it come back from their folders, bit for bit."""
    x = cube(1, 1, 19, 24, 9)
    network, encoder = network.eval(), network.encoder
    torch.manual_seed(1)
    head = ClassificationHead(encoder.num_features, 3)
    classifier = Classifier(encoder, head).eval()
    whole = load_segmenter(save_pretrained(network, folder / "whole", labels={1: "ball"}))
    assert whole.config.kind == "segmenter"
    assert whole.arguments == network.arguments
    assert whole.head_trained
    bare = load_encoder(save_pretrained(encoder, folder / "encoder"))
    judge = load_classifier(save_pretrained(classifier, folder / "classifier"))
    of_whole = load_encoder(folder / "whole", out_indices=(-1,))
    with torch.no_grad():
        assert torch.equal(whole(x), network(x))
        for loaded, original in ((bare, encoder), (whole.encoder, encoder)):
            assert all(torch.equal(a, b) for a, b in zip(loaded(x), original(x), strict=True))
        assert torch.equal(of_whole(x)[0], encoder(x)[-1])
        assert torch.equal(judge(x), classifier(x))
    five = load_segmenter(folder / "whole", num_classes=5)
    assert five(x).shape == (1, 5, 19, 24, 9)
    assert not five.head_trained
    assert {entry.name.split(".")[0] for entry in five.load_report.new} == {"head"}
    assert (five.head.bias is None) == (network.head.bias is None)
    assert load_classifier(folder / "whole", num_classes=4)(x).shape == (1, 4)


def check_input_channels(folder: Path) -> None:
    """Loaded with three channels, a repeated input is answered as before."""
    one, three = load_segmenter(folder), load_segmenter(folder, in_channels=3)
    x = cube(1, 1, 16, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(three(x.expand(1, 3, 16, 16, 8)), one(x), atol=1e-4, rtol=1e-4)


def check_scans(folder: Path) -> None:
    """``predict`` and ``embed`` take the loaded network; tiles or windows as it says."""
    scan = Volume(cube(20, 18, 13).numpy(), np.eye(4))
    low, high = scan.array.min(), scan.array.max()
    x = torch.from_numpy((scan.array - low) / (high - low))[None, None]
    model = load_segmenter(folder)
    with torch.no_grad():
        expected = model(x).softmax(dim=1)[0, 1].numpy()
        embedding = model.encoder.embed(x)[0].numpy()
    whole = predict(model, scan, modality="MR", output="probabilities")[1]
    np.testing.assert_allclose(whole.array, expected, atol=1e-4)
    windows = predict(
        model, scan, modality="MR", output="probabilities", tiling="gaussian", window=(16, 16, 8)
    )[1]
    assert windows.array.shape == (20, 18, 13)
    assert 0 < np.abs(windows.array - expected).mean() < 0.3  # windows see zeros at their faces
    found = embed(load_encoder(folder), scan, modality="MR")
    np.testing.assert_allclose(found, embedding, atol=1e-4, rtol=1e-4)
