"""One self-contained page to look at images beside their reference; made by ``cpips view``."""

from .page import Picture, write_page
from .peaks import Peak, largest

__all__ = ["Peak", "Picture", "largest", "write_page"]
