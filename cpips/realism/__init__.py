"""Realism: distances between the distributions of two sets of images, and Wasserstein distortion.

    from cpips.realism import fid, kid
    result = fid("references", "images")         # folders, paths, tensors: no pairs, no sizes to match
    print(result)                                # frechet-hyperprior-q4 0.0123 ...: the name says whose features these are

``fid`` and ``kid`` are named so after what they compute, the Frechet and the kernel distance. A *result* is called FID or KID
only if its features are Inception's, as in the papers; those of the codec's encoder, the default, are ``frechet-MODEL`` and
``kernel-MODEL``, in units of their own.
"""

from .distances import Result, fid, kid, precision_recall
from .spaces import Space, encoder_space, inception_space, make_space
from .statistics import Statistics, collect
from .wasserstein import WassersteinDistortion, foveation_map, mask_map, wasserstein_distortion

__all__ = [
    "Result", "Space", "Statistics", "WassersteinDistortion", "collect", "encoder_space", "fid", "foveation_map",
    "inception_space", "kid", "make_space", "mask_map", "precision_recall", "wasserstein_distortion",
]
