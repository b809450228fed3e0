"""The files of clips: downloading them from the upstream's links, and serving our copies."""
