"""The objective against its equations: gradients, shapes, and who learns what."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from training.config import ObjectiveConfig
from training.objective import (
    Discriminator,
    Losses,
    ReverseGradient,
    ScaleClassifier,
    UniversalModel,
    balanced_accuracy,
    reversal_weight,
)
from universal_model_hub.networks.unet3d import UNet3D

CONFIG = ObjectiveConfig()


def batch_of(n=4, side=16):
    generator = torch.Generator().manual_seed(1)
    original = torch.rand(n, 1, side, side, side, generator=generator)
    return {
        "original": original,
        "corrupted": torch.rand(n, 1, side, side, side, generator=generator),
        "modality_id": torch.tensor([0, 1] * (n // 2)),
        "scale_id": torch.arange(n) % 3,
    }


def model_of(config=CONFIG, width=2):
    torch.manual_seed(0)
    return UniversalModel(UNet3D(width=width), config)


def gradients(model, part):
    named = getattr(model, part).named_parameters()
    return {k: None if p.grad is None else p.grad.clone() for k, p in named}


def test_gradient_reversal_flips_the_sign():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    ReverseGradient.apply(x, 0.5).sum().backward()
    assert x.grad.tolist() == [-0.5, -0.5]


def test_the_total_is_equation_4_with_the_papers_weights():
    losses = Losses(*torch.tensor([2.0, 3.0, 5.0, 0.0, 0.0]))
    assert losses.total(CONFIG) == 3.0 + 1 * 5.0 + 10 * 2.0


def test_each_term_is_its_equation():
    model, batch = model_of().eval(), batch_of()
    losses = model(batch, step=0)
    features = model.unet.encoder(batch["corrupted"])
    restored = model.unet(batch["corrupted"])
    answer = torch.sigmoid(model.discriminator(features))
    is_ct = batch["modality_id"] == 1
    l_adv = torch.where(is_ct, answer.log(), (1 - answer).log()).mean()  # Eq. 2
    torch.testing.assert_close(losses.modality, -l_adv)
    torch.testing.assert_close(losses.restoration, (restored - batch["original"]).square().mean())
    logits = model.scale_classifier(features[-1])
    torch.testing.assert_close(losses.scale, F.cross_entropy(logits, batch["scale_id"]))


def test_the_encoder_climbs_what_the_discriminator_descends():
    config = dataclasses.replace(CONFIG, restoration_weight=0.0, scale_weight=0.0)
    model, batch = model_of(config).eval(), batch_of()
    model(batch, step=0).total(config).backward()
    through_reversal = gradients(model, "unet")["encoder.levels.0.units.0.conv.weight"]
    of_discriminator = gradients(model, "discriminator")["out.weight"]
    model.zero_grad()
    logits = model.discriminator(model.unet.encoder(batch["corrupted"]))
    F.binary_cross_entropy_with_logits(logits, batch["modality_id"].float()).backward()
    plain = gradients(model, "unet")["encoder.levels.0.units.0.conv.weight"]
    assert plain.abs().max() > 0
    torch.testing.assert_close(through_reversal, -plain)
    torch.testing.assert_close(of_discriminator, gradients(model, "discriminator")["out.weight"])


def test_in_the_alternating_game_each_player_moves_alone():
    config = dataclasses.replace(CONFIG, adversarial="alternating")
    model, batch = model_of(config), batch_of()
    model(batch, step=0, only_discriminator=True).modality.backward()
    assert all(g is None for g in gradients(model, "unet").values())
    assert all(g is not None for g in gradients(model, "discriminator").values())
    model.zero_grad()
    model(batch, step=0).total(config).backward()
    assert all(g is None for g in gradients(model, "discriminator").values())
    assert all(g is not None for g in gradients(model, "unet").values())


def test_both_games_push_the_encoder_the_same_way():
    batch = batch_of()
    pushes = []
    for adversarial in ("reversal", "alternating"):
        config = dataclasses.replace(CONFIG, adversarial=adversarial, restoration_weight=0.0)
        model = model_of(config).eval()
        model(batch, step=0).total(config).backward()
        pushes.append(gradients(model, "unet")["encoder.levels.3.units.1.conv.weight"])
    torch.testing.assert_close(pushes[0], pushes[1])


@pytest.mark.parametrize(
    ("off", "part"),
    [("modality_weight", "discriminator"), ("scale_weight", "scale_classifier")],
)
def test_a_part_that_is_switched_off_neither_learns_nor_teaches(off, part):
    config = dataclasses.replace(CONFIG, **{off: 0.0})
    model, batch = model_of(config), batch_of()
    losses = model(batch, step=0)
    losses.total(config).backward()
    assert all(g is None for g in gradients(model, part).values())
    assert float(losses.modality if off == "modality_weight" else losses.scale) == 0.0


def test_the_reversal_waits_and_then_rises():
    config = dataclasses.replace(CONFIG, reversal_delay=10, reversal_ramp=4)
    weights = [reversal_weight(config, step) for step in (0, 9, 10, 12, 14, 100)]
    assert weights == [0.0, 0.0, 0.2, 0.6, 1.0, 1.0]
    assert reversal_weight(CONFIG, 0) == 1.0


def test_the_discriminator_has_the_connections_of_figure_1():
    discriminator = Discriminator([64, 128, 256, 512])
    inputs = [block.conv1.in_channels for block in discriminator.blocks]
    assert inputs == [64, 64 + 128, 128 + 256]
    assert discriminator.hidden.in_features == 256 + 512
    shapes = [(64, 64, 64, 32), (128, 32, 32, 16), (256, 16, 16, 8), (512, 8, 8, 4)]
    with torch.device("meta"):
        meta = Discriminator([64, 128, 256, 512])
        features = [torch.zeros(2, *shape) for shape in shapes]
    assert meta(features).shape == (2,)


def test_every_encoder_level_reaches_the_discriminator():
    model, batch = model_of().eval(), batch_of()
    features = [f.detach().requires_grad_() for f in model.unet.encoder(batch["corrupted"])]
    model.discriminator(features).sum().backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)


def test_the_scale_classifier_has_1024_hidden_units_and_one_answer_a_scale():
    classifier = ScaleClassifier(512)
    assert classifier.hidden.out_features == 1024
    assert classifier(torch.rand(2, 512, 4, 4, 2)).shape == (2, 3)


def test_odd_sides_pass_through_the_discriminator():
    model = model_of().eval()
    features = model.unet.encoder(torch.rand(2, 1, 13, 11, 9))
    assert model.discriminator(features).shape == (2,)


def test_balanced_accuracy_counts_classes_not_samples():
    truth = torch.tensor([0, 0, 0, 0, 1])
    assert balanced_accuracy(torch.zeros(5, dtype=torch.long), truth, 3) == 0.5


def test_the_network_overfits_one_batch():
    config = dataclasses.replace(CONFIG, modality_weight=0.0)
    model, batch = model_of(config, width=4), batch_of(n=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(batch, 0)
    for _ in range(40):
        optimizer.zero_grad()
        losses = model(batch, 0)
        losses.total(config).backward()
        optimizer.step()
    assert losses.scale < 0.1 * first.scale
    assert losses.restoration < 0.7 * first.restoration
