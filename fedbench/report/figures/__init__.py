"""Runs to figures: `gallery` says which there are, `style` and `frame` how they look, the other files draw a panel each."""
