"""Image files at a target: the encoder setting that just meets a quality, a distance, a PSNR or a size.

    from cpips.encoding import encode_to
    encode_to("photo.png", target=4.5, format="avif").save("photo.avif")
"""

from .files import Row, encode_files
from .formats import FORMATS, CommandEncoder, CpzEncoder, Encoder, PillowEncoder, list_formats, open_encoder
from .target import Encoded, Goal, Search, Trial, encode_to

__all__ = [
    "CommandEncoder", "CpzEncoder", "Encoded", "Encoder", "FORMATS", "Goal", "PillowEncoder", "Row", "Search", "Trial",
    "encode_files", "encode_to", "list_formats", "open_encoder",
]
