"""Search over one's own pictures: their vectors on disk, queries by text and picture, and their page."""
