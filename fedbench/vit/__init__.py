"""The frozen Vision Transformer: running, compiling and caching it. This layer knows no clients."""
