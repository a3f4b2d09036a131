"""One self-contained page to look at images beside their reference; made by ``cpips view``."""

from .peaks import Peak, largest
from .viewer import Picture, write_page

__all__ = ["Peak", "Picture", "largest", "write_page"]
