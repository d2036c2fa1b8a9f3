"""A short training in float64, run by test_images_training in processes of its own: NAME PAUSE."""

from __future__ import annotations

import sys
import time

import safetensors.torch
import torch
from torch import nn

from nablanets import GradientResidual
from nablanets_studies.images.training import Stored, TrainSettings, train


def main(name: str, pause: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), GradientResidual(block, stop_gradient=False), nn.Flatten(), nn.Linear(144, 3)
    )
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(60, 1, 8, 8, generator=generator), torch.randint(0, 3, (60,), generator=generator)

    def augment(x: torch.Tensor, y: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(pause)
        return torch.where(u[:, :1, None, None] < 0.5, x.flip(-1), x), y

    settings = TrainSettings(
        epochs=5,
        batch_size=12,
        learning_rate=0.01,
        precision="64-true",
        accelerator="cpu",
        checkpoint_every=4,
        ema=0.9,
    )
    source = Stored(x, y, augment, draws=1)
    result = train(net, source, nn.functional.cross_entropy, settings=settings, checkpoint=f"{name}.checkpoint")
    rank, processes = 0, 1
    if torch.distributed.is_initialized():
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        torch.distributed.destroy_process_group()
    if rank > 0:
        return
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    state |= {"processes": torch.tensor(processes)}
    state |= {"training": torch.tensor([row.training_error for row in result.history[1:]])}
    safetensors.torch.save_file(state, f"{name}.net")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
