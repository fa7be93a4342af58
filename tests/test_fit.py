"""Fine-tuning: cubes, transfer, loss and loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from universal_model_hub import save_pretrained
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training import sampling
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.losses import segmentation_loss
from universal_model_hub.fit.training.sampling import CubeSampler, augmented, cut
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_model, kernel_sizes, resize_kernels

SETTINGS = FinetuneSettings(cube=(8, 8, 8), steps=4, head_steps=1)


def ball_case(shape=(16, 16, 16)):
    """A bright ball in a dark cube; the last slice is not annotated."""
    grid = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    labels = (np.square(grid).sum(axis=0) < 16).astype(np.int16)
    image = 0.2 + 0.6 * labels[None].astype(np.float32)
    labels[:, :, -1] = -1
    return LoadedCase("ball", image, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cube": (8, 8, 12)}, "multiples of 8"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"precision": "int8"}, "precision"),
        ({"foreground_share": 1.5}, "foreground_share"),
        ({"head_rate_factor": 0.0}, "head_rate_factor"),
        ({"freeze_normalization": 1.1}, "freeze_normalization"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **change)


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = (CubeSampler([ball_case()], SETTINGS, 2) for _ in range(2))
    first.batch(0)
    for one, other in zip(first.batch(3), again.batch(3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.batch(3)[0], first.batch(4)[0])
    other_seed = CubeSampler([ball_case()], replace(SETTINGS, seed=1), 2)
    assert not torch.equal(first.batch(3)[0], other_seed.batch(3)[0])


def test_flips_and_transposes_give_all_turns_of_a_cube_and_keep_the_shape_of_others():
    settings = replace(SETTINGS, flip_axes=(0, 1, 2), transpose=True, intensities=False)
    for shape, orientations in (((3, 3, 3), 48), ((3, 3, 2), 16), ((2, 3, 4), 8)):
        labels = torch.arange(np.prod(shape)).reshape(shape)
        seen = set()
        for seed in range(600):
            rng = np.random.default_rng(seed)
            image, turned = augmented(labels[None] / 100, labels, settings, rng)
            assert turned.shape == shape
            assert (image[0] * 100 - turned).abs().max() < 20  # noise, no other place or scale
            seen.add(tuple(turned.flatten().tolist()))
        assert len(seen) == orientations


def test_foreground_is_in_every_cube_that_is_drawn_for_it():
    case = ball_case((48, 48, 48))
    sampler = CubeSampler([case], replace(SETTINGS, foreground_share=1.0), 2)
    for step in range(10):
        images, labels = sampler.batch(step)
        assert images.shape == (2, 1, 8, 8, 8)
        assert labels.shape == (2, 8, 8, 8)
        assert ((labels == 1).flatten(1).sum(dim=1) > 0).all()


def test_cubes_not_drawn_for_the_foreground_lie_anywhere_alike_however_few_voxels_are_indexed(
    monkeypatch,
):
    monkeypatch.setattr(sampling, "INDEXED_VOXELS", 20)
    small, large = np.zeros((8, 8, 8), np.int16), np.zeros((32, 32, 32), np.int16)
    small[:4] = 1
    cases = [
        LoadedCase(name, labels[None].astype(np.float32), labels)
        for name, labels in (("small", small), ("large", large))
    ]
    settings = replace(SETTINGS, foreground_share=0.0, augment=False)
    sampler = CubeSampler(cases, settings, 2)
    with_class = sum(int((sampler.batch(step)[1] == 1).any()) for step in range(300))
    assert with_class < 20  # a small volume is 512 of 33,280 voxels: about 9 of 300 batches


def test_a_cube_larger_than_the_volume_is_padded_as_not_annotated():
    case = ball_case((6, 16, 16))
    before = case.image.copy()
    image, labels = cut(case, [3, 8, 8], (8, 8, 8), np.random.default_rng(0))
    assert image.shape == (1, 8, 8, 8)
    assert (labels[6:] == -1).all()
    assert (image[:, 6:] == 0).all()
    np.testing.assert_array_equal(case.image, before)


def test_labels_beyond_the_classes_and_empty_labels_are_refused():
    case = ball_case()
    with pytest.raises(ConfigError, match="labels of -1 to 0 in ball"):
        CubeSampler([case], SETTINGS, 1)
    with pytest.raises(ConfigError, match="annotated"):
        CubeSampler([LoadedCase("x", case.image, np.full_like(case.labels, -1))], SETTINGS, 2)
    with pytest.raises(ConfigError, match="shape in x"):
        CubeSampler([LoadedCase("x", case.image, case.labels[:8])], SETTINGS, 2)


def test_the_loss_of_the_truth_is_near_zero_and_ignores_what_is_not_annotated():
    labels = torch.randint(-1, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = 50.0 * torch.nn.functional.one_hot(labels.clamp(min=0), 3).movedim(-1, 1).float()
    assert float(segmentation_loss(logits, labels)) < 1e-3
    spoiled = torch.where((labels == -1)[:, None], torch.tensor(9.0), logits)
    assert float(segmentation_loss(spoiled, labels)) < 1e-3
    assert float(segmentation_loss(-logits, labels)) > 10


def test_full_takes_the_decoder_and_encoder_does_not(tmp_path):
    small = build_model(None, num_classes=1, arguments={"width": 2})
    vars(small)["head_trained"] = True
    folder = save_pretrained(small, tmp_path / "weights", license="apache-2.0")
    full, encoder, scratch = (
        build_model(weights, num_classes=3, transfer=way, seed=7, arguments={"width": 2})
        for weights, way in ((folder, "full"), (folder, "encoder"), (None, "full"))
    )

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    x = torch.rand(1, 1, 16, 16, 16)
    for model in (small, full, encoder):
        model.train(False)
    with torch.inference_mode():
        features = small.encoder.pyramid(x)
        torch.testing.assert_close(full.decoder(full.encoder.pyramid(x)), small.decoder(features))
        torch.testing.assert_close(encoder.encoder.pyramid(x), features)
    assert not same(full.decoder, scratch.decoder)
    assert same(encoder.decoder, scratch.decoder)
    assert same(full.head, scratch.head)
    with pytest.raises(ConfigError, match="full or encoder"):
        build_model(folder, num_classes=2, transfer="half")


@pytest.mark.parametrize("train", [False, True])
def test_kernels_are_resized_without_another_answer(train):
    large, fresh = (build_model(None, num_classes=2, arguments={"width": 2}) for _ in range(2))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(large.named_parameters()):
            if parameter.ndim == 5 and not name.startswith("head"):
                parameter.mul_(2.0 + number)
    x = torch.rand(2, 1, 16, 16, 16)
    for _ in range(40):
        large(x)  # running statistics of such kernels
    large.train(train)
    before = large(x).detach().clone()
    resize_kernels(large, kernel_sizes(fresh))
    for name, size in kernel_sizes(large).items():
        assert size == pytest.approx(kernel_sizes(fresh)[name], rel=1e-4), name
    torch.testing.assert_close(large(x).detach(), before, rtol=1e-2, atol=1e-2)


def test_the_head_learns_alone_at_first():
    model = build_model(None, num_classes=2, arguments={"width": 2})
    before = [p.detach().clone() for p in model.parameters()]
    settings = replace(SETTINGS, steps=2, head_steps=2)
    fit(model, CubeSampler([ball_case()], settings, 2), settings)
    changed = {
        name
        for (name, p), old in zip(model.named_parameters(), before, strict=True)
        if not torch.equal(p.detach(), old)
    }
    assert changed == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_alone_learns_at_its_own_rate_and_then_everything_warms_up():
    settings = replace(SETTINGS, steps=6, head_steps=2, warmup_steps=2, head_rate_factor=10)
    sampler = CubeSampler([ball_case()], settings, 2)
    model = build_model(None, num_classes=2, arguments={"width": 2})
    seen = [model.head.weight.detach().clone()]
    fit(
        model,
        sampler,
        settings,
        after_step=lambda step, model: seen.append(model.head.weight.detach().clone()),
    )
    first = float((seen[1] - seen[0]).abs().max())
    after_head = float((seen[3] - seen[2]).abs().max())
    assert first == pytest.approx(10 * settings.learning_rate, rel=0.05)  # a step of Adam
    assert after_head < 2 * settings.learning_rate


def test_statistics_stay_in_the_last_share_of_the_steps():
    settings = replace(SETTINGS, steps=4, head_steps=0, freeze_normalization=0.5)
    model = build_model(None, num_classes=2, arguments={"width": 2})
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d))
    means = []
    fit(
        model,
        CubeSampler([ball_case()], settings, 2),
        settings,
        after_step=lambda step, model: means.append(norm.running_mean.clone()),
    )
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert torch.equal(means[1], means[3])


def test_a_ball_is_learned_and_the_same_seed_gives_the_same_weights():
    settings = replace(SETTINGS, steps=60, head_steps=5, learning_rate=1e-2, batch_size=4)
    models = [build_model(None, num_classes=2, arguments={"width": 2}) for _ in range(2)]
    losses = [fit(m, CubeSampler([ball_case()], settings, 2), settings).losses for m in models]
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < 0.25 * np.mean(losses[0][:5])
    assert not models[0].training


def test_a_loss_that_is_not_finite_stops_the_run():
    model = build_model(None, num_classes=2, arguments={"width": 2})
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="step 1"):
        fit(model, CubeSampler([ball_case()], SETTINGS, 2), SETTINGS)
