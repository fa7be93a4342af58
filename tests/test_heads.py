"""Heads, checked against the same sums written out."""

import torch

from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.networks.unet3d import Encoder


def test_classification_head_sees_the_mean_of_the_deepest_map_only():
    torch.manual_seed(0)
    head = ClassificationHead(6, 3)
    deepest = torch.randn(2, 6, 2, 3, 1)
    shuffled = deepest.flatten(2)[:, :, torch.randperm(6)].reshape(deepest.shape)
    expected = deepest.mean(dim=(2, 3, 4)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head([torch.randn(2, 3, 4, 6, 2), deepest]), expected)
    torch.testing.assert_close(head([shuffled]), expected)


def test_classifier_is_the_head_on_the_embedding():
    torch.manual_seed(0)
    encoder = Encoder(width=2)
    model = Classifier(encoder, ClassificationHead(encoder.num_features, 4)).eval()
    x = torch.rand(2, 1, 9, 8, 17)
    torch.testing.assert_close(model(x), model.head.linear(encoder.embed(x)))
    assert model(x).shape == (2, 4)
    assert model.stride == 8
