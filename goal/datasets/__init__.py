"""Sources of pictures and captions, one file each; the manifest that they all write."""
