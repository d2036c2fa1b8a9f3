"""Networks for pictures."""

from nablanets.images.models.baselines import Bicubic
from nablanets.images.models.edsr import EDSR
from nablanets.images.models.pretrained import edsr_from, load_edsr
from nablanets.images.models.resnet import ResNet
from nablanets.images.models.segmenter import Segmenter
from nablanets.images.models.srresnet import SRResNet
from nablanets.images.models.unet import UNet
from nablanets.images.models.weights import LoadReport, load_weights

__all__ = [
    "EDSR",
    "Bicubic",
    "LoadReport",
    "ResNet",
    "SRResNet",
    "Segmenter",
    "UNet",
    "edsr_from",
    "load_edsr",
    "load_weights",
]
