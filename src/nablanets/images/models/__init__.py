"""Networks for pictures."""

from nablanets.images.models.edsr import EDSR
from nablanets.images.models.pretrained import edsr_from, load_edsr
from nablanets.images.models.srresnet import SRResNet

__all__ = ["EDSR", "SRResNet", "edsr_from", "load_edsr"]
