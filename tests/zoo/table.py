"""All rows of the zoo by name, and the fast tenth of them that CI runs."""

from __future__ import annotations

from . import (
    from_timm,
    from_torchvision,
    images,
    language,
    plain_dense,
    plain_fields,
    plain_generators,
    plain_images,
    plain_series,
    plain_spectra,
    plain_text,
)
from .row import Row

MODULES = (
    *(plain_dense, plain_images, plain_generators, plain_text, plain_series, plain_spectra, plain_fields),
    *(language, images, from_torchvision, from_timm),
)
_ALL = [row for module in MODULES for row in module.ROWS]
ROWS: dict[str, Row] = {row.name: row for row in _ALL}
if len(ROWS) != len(_ALL):
    raise ValueError("two rows of the zoo have the same name")
