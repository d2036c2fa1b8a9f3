"""What the packaged upscaler gains over bicubic on the ten test pictures, and what a large photograph costs.

    python benchmarks/upscale.py [--part gains] [--megapixels 12] [--memory 512]

"gains" needs the test pictures (`nablanets data get opencv-examples test-pictures`); "large" enlarges a
made-up photograph x2 and prints wall and processor time and the peak of the resident memory, beside what the pictures
themselves take. Run it with OMP_NUM_THREADS=1 for one thread.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from nablanets.cli import main
from nablanets_studies.images.metrics import quality
from nablanets_studies.images.models import Bicubic
from nablanets_studies.images.photographs import embedded_photographs, packaged_files, packaged_photographs
from nablanets_studies.images.upscale import packaged_upscaler


def gains() -> None:
    missing = packaged_files("test").missing
    photographs = embedded_photographs("test") if missing else packaged_photographs("test")
    if missing:
        print(f"without {', '.join(missing)}: only the pictures of scikit-image and scikit-learn")
    ours, theirs = (quality(net, photographs.pictures, 2) for net in (packaged_upscaler().eval(), Bicubic(2)))
    print(f"{'x2, luminance':14} {'bicubic':>8} {'ours':>8} {'gain':>6}   SSIM")
    for name, a, b in zip(photographs.names, theirs, ours, strict=True):
        print(f"{name:14} {a.psnr:8.2f} {b.psnr:8.2f} {b.psnr - a.psnr:6.2f}   {a.ssim:.4f} {b.ssim:.4f}")
    means = [sum(q.psnr for q in each) / len(each) for each in (theirs, ours)]
    print(f"{'mean':14} {means[0]:8.2f} {means[1]:8.2f} {means[1] - means[0]:6.2f}")


def large(megapixels: float, memory: float) -> None:
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    tile = embedded_photographs("test").pictures[0].permute(1, 2, 0).numpy()
    repeats = (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.jpg"
        Image.fromarray(np.ascontiguousarray(np.tile(tile, repeats)[:height, :width])).save(source, quality=95)
        before, start, spent = _peak(), time.perf_counter(), time.process_time()
        main_without_exit(["upscale", str(source), "--out", str(Path(folder) / "large.png"), "--memory", str(memory)])
        print(
            f"{width} x {height} to {2 * width} x {2 * height} with --memory {memory:g}: "
            f"{time.perf_counter() - start:.0f} s, {time.process_time() - spent:.0f} s of processor time; peak "
            f"{_peak():.0f} MiB resident, {before:.0f} before; the pictures have {15 * width * height / 2**20:.0f} MiB"
        )


def main_without_exit(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--memory", type=float, default=512)
    parser.add_argument("--part", choices=("both", "gains", "large"), default="both")
    given = parser.parse_args()
    if given.part != "gains":
        large(given.megapixels, given.memory)
    if given.part != "large":
        gains()
