"""Published rate and distortion of CompressAI's ``bmshj2018-hyperprior``, trained for MSE, mean over Kodak."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "InterDigitalInc/CompressAI @869a9f5, results/image/kodak/compressai-bmshj2018-hyperprior_mse_cuda.json"


class Point(NamedTuple):
    quality: int
    lmbda: float
    bpp: float
    psnr: float  # dB, RGB
    ms_ssim: float


POINTS = (
    Point(1, 0.0018, 0.1313, 27.582, 0.91737),
    Point(2, 0.0035, 0.2089, 29.197, 0.94206),
    Point(3, 0.0067, 0.3199, 30.972, 0.96106),
    Point(4, 0.0130, 0.4784, 32.838, 0.97487),
    Point(5, 0.0250, 0.6687, 34.526, 0.98356),
    Point(6, 0.0483, 0.9388, 36.743, 0.98925),
    Point(7, 0.0932, 1.2592, 38.584, 0.99287),
    Point(8, 0.1800, 1.6602, 40.557, 0.99549),
)
BY_LAMBDA = {point.lmbda: point for point in POINTS}
