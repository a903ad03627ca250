"""Runs to tables: `metrics` names the columns, `summary` makes cells of runs, `grid` lays them out, `text` writes them."""
