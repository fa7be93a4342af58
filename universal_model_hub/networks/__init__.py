"""The networks and their encoders, by the name their ``config.json`` gives them."""

from torch import nn

from universal_model_hub.networks.unet3d import Encoder, UNet3D

ARCHITECTURES: dict[str, type[nn.Module]] = {"unet3d": UNet3D}
ENCODERS: dict[str, type[Encoder]] = {"unet3d": Encoder}
