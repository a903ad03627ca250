"""Tables of runs. `metrics` defines the columns, `summary` computes cells, `grid` arranges them, `text` writes them."""
