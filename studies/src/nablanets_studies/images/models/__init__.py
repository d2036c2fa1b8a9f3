"""Networks for pictures."""

from nablanets_studies.images.models.baselines import Bicubic
from nablanets_studies.images.models.edsr import EDSR
from nablanets_studies.images.models.pretrained import edsr_from, load_edsr
from nablanets_studies.images.models.resnet import ResNet
from nablanets_studies.images.models.segmenter import Segmenter
from nablanets_studies.images.models.srresnet import SRResNet
from nablanets_studies.images.models.unet import UNet
from nablanets_studies.images.models.weights import LoadReport, load_weights

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
