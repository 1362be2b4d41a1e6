"""The link, as the edge sees it."""
