"""The networks and their encoders, by the name their ``config.json`` gives them."""

from torch import nn

from universal_model_hub.networks.dense_vnet import DenseVNet, DenseVNetEncoder
from universal_model_hub.networks.i3d import I3D, I3DEncoder
from universal_model_hub.networks.pyramid import PyramidEncoder
from universal_model_hub.networks.resnet3d import ResNet3D, ResNetEncoder
from universal_model_hub.networks.unet3d import Encoder, UNet3D

SegmentationNetwork = UNet3D | ResNet3D | I3D | DenseVNet

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "unet3d": UNet3D,
    "resnet3d": ResNet3D,
    "i3d": I3D,
    "dense_vnet": DenseVNet,
}
ENCODERS: dict[str, type[PyramidEncoder]] = {
    "unet3d": Encoder,
    "resnet3d": ResNetEncoder,
    "i3d": I3DEncoder,
    "dense_vnet": DenseVNetEncoder,
}
