"""Sizes as options write them; see `common.sizes`."""

from common.sizes import parse_size

__all__ = ["parse_size"]
