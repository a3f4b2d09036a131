r"""An index of the latents of many images in one file, and the search for the nearest images.

    build("photos", "cpips-index", open_codec())
    LatentIndex.open("cpips-index").search("query.jpg", k=10)      # [("a.jpg", 0.031), ...], nearest first

Every image is brought to one size (:func:`standard`; how is part of the measure, and named in the file and the
signature), coded, and kept as the bytes of its ``.cpz``: a few kilobytes, from which its latent comes back exactly. A
search is two steps: usearch's graph of short vectors (:func:`sketch`) proposes candidates, and the metric's own
distance, taken on their decoded latents, ranks them.

One file, so that an index is whole or absent, and is moved and deleted like any file. Numbers are little-endian::

    8    magic  89 43 50 58 0D 0A 1A 0A   ("\x89CPX\r\n\x1a\n")
    4    bytes of the manifest
         manifest: JSON, ASCII
    8    BLAKE2b-64 of everything before
         the images' .cpz files, in the manifest's order, without gaps
         graph of the vectors, as usearch writes it; its BLAKE2b-64 is in the manifest

The checksums tell damage and are no signatures: usearch reads its graph in native code, so open indexes of people you
trust.
"""

from ._build import Summary, build
from ._format import DIMS, MAGIC, RESIZE, SIZE, SKETCH, VERSION, IndexFileError, sketch, standard
from ._search import DEFAULT_INDEX, LatentIndex

__all__ = ["DEFAULT_INDEX", "DIMS", "IndexFileError", "LatentIndex", "MAGIC", "RESIZE", "SIZE", "SKETCH", "Summary",
           "VERSION", "build", "sketch", "standard"]
