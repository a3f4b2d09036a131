"""``.cpz`` files in Pillow: after ``import cpips.pillow``, ``Image.open("a.cpz")`` opens them and ``image.save("a.cpz")`` writes them.

    import cpips.pillow
    from PIL import Image

    image = Image.open("a.cpz")              # reads and checks the header: size and codec; nothing is decoded yet
    image.info["codec"], image.info["quality"]
    image.convert("L").save("gray.png")      # decoded when the pixels are needed

    Image.open("photo.png").save("b.cpz", quality=75)                     # a variable-rate codec
    Image.open("photo.png").save("c.cpz", codec="hyperprior-q2")          # any other

Pillow looks for no plug-ins by itself, so the import is what registers this one. Opening needs Pillow alone; decoding and saving
need the extra ``codec``, and the weights of the codec that the file names (:func:`cpips.codec.files.open_codec`).
"""

from __future__ import annotations

from typing import IO, Any

from PIL import Image, ImageFile

from .codec import container
from .errors import BitstreamError

FORMAT = "CPZ"
MIME = "image/x-cpz"


class CpzImageFile(ImageFile.ImageFile):
    """An image in a ``.cpz`` file; ``info`` has the names of its ``codec``, its ``codec_digest`` and its ``quality``."""

    format = FORMAT
    format_description = "cpips compressed image"

    def _open(self) -> None:
        assert self.fp is not None
        try:
            self._compressed: container.Compressed | None = container.unpack(self.fp.read(), str(self.filename or "the file"))
        except BitstreamError as error:
            raise SyntaxError(str(error)) from error  # what Pillow takes for: not of this format
        height, width = self._compressed.size
        self._size, self._mode, self.tile = (width, height), "RGB", []
        self.info.update(codec=self._compressed.codec, codec_digest=self._compressed.codec_digest, quality=self._compressed.quality)

    def load(self) -> Any:
        """Decode the image, unless that was done."""
        if self._compressed is not None:
            from .codec.files import codec_of
            from .images import to_pil

            compressed = self._compressed
            self.im = to_pil(codec_of(compressed, name=str(self.filename or "the file")).decode(compressed.stream)).im
            self._compressed = None
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
                self.fp = None
        return super().load()


def _save(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    from .codec.files import default_codec, open_codec
    from .images import from_pil

    asked = image.encoderinfo
    quality = asked.get("quality")
    codec = asked.get("codec") or default_codec(quality)
    model = open_codec(codec, quality)
    stream.write(container.pack(model.encode(from_pil(image)), model.name, model.digest, model.quality))


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def register() -> None:
    """Register the format with Pillow, which importing this module does.

    Example:
        >>> import cpips.pillow
        >>> from PIL import Image
        >>> cpips.pillow.register()
        >>> Image.registered_extensions()[".cpz"]
        'CPZ'
    """
    Image.register_open(FORMAT, CpzImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, container.SUFFIX)
    Image.register_mime(FORMAT, MIME)


register()
