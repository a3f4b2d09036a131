r"""An index of the latents of many images in one file, and the search for the nearest images.

    build("photos", "cpips-index", open_codec())
    LatentIndex.open("cpips-index").search("query.jpg", k=10)      # [("a.jpg", 0.031), ...], nearest first

Every image is brought to one size (:func:`standard`; how is part of the measure, and named in the file and the
signature), coded, and kept as the bytes of its ``.cpz``: a few kilobytes, from which its latent comes back exactly. A
search is two steps: the short vectors (:func:`sketch`) nearest to the query's, which usearch finds, are candidates, and
the metric's own distance, taken on their decoded latents, ranks them.

One file, so that an index is whole or absent, and is moved and deleted like any file: a ZIP archive, not compressed, of

- ``cpips-index.json``: the codec, the size, and path, bytes and time of change of each image;
- ``vectors.f16``: the short vectors, 16-bit floats in the order of the images;
- ``0.cpz``, ``1.cpz`` ...: the images.

Its checksums show damage and are no signatures. Indexes of earlier versions have to be built anew.
"""

from ._build import Summary, build
from ._format import DIMS, MAGIC, RESIZE, SIZE, SKETCH, VERSION, IndexFileError, sketch, standard
from ._search import DEFAULT_INDEX, LatentIndex

__all__ = ["DEFAULT_INDEX", "DIMS", "IndexFileError", "LatentIndex", "MAGIC", "RESIZE", "SIZE", "SKETCH", "Summary",
           "VERSION", "build", "sketch", "standard"]
