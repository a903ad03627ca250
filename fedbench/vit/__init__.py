"""The frozen Vision Transformer: how it is run, compiled and cached. It knows no clients."""
