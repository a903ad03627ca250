"""Figures of runs. `catalogue` collects them, `style` and `frame` define their look, and the other files draw panels."""
