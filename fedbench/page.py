"""The report as one HTML page: readable on a phone and on paper, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import pandas as pd

from fedbench.tables import METRICS, REFERENCE, STATES, TIE, Grid

UNFINISHED = 200  # rows of the list of runs that are not done; runs.csv has them all


@dataclass(frozen=True)
class Shown:
    """A figure on the page: `files` by kind, relative to the page; none where it could not be drawn."""

    title: str
    caption: str
    files: dict[str, str]
    width: float = 1.0  # share of the page's width, so that type has one size in all figures


def render(
    title: str,
    runs: pd.DataFrame,
    main: Sequence[Grid],
    details: Sequence[tuple[str, Grid, Grid]],
    legend: Sequence[str],
    footer: Sequence[str],
    alarms: Sequence[str],
    figures: Sequence[Shown],
) -> str:
    """The page; every text is escaped. `runs` as in `fedbench.tables`, `details` (setting, accuracies, costs)."""
    unfinished = runs[runs["state"] != "done"]
    known = runs.dropna(subset=["partition_hash"])
    hashes = [
        (*place, ", ".join(map(str, group["partition_hash"].unique())), group["partition_hash"].nunique() > 1)
        for place, group in known.groupby(["setting", "seed"], sort=False)
    ]
    weights = runs.dropna(subset=["backbone_hash"]).drop_duplicates(["backbone", "backbone_hash"])
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(PAGE).render(
        title=title,
        style=STYLE,
        main=main,
        details=details,
        legend=legend,
        footer=footer,
        alarms=alarms,
        figures=figures,
        unfinished=unfinished.head(UNFINISHED)[["run", "label", "setting", "seed", "state", "said"]].to_dict("records"),
        more=max(0, len(unfinished) - UNFINISHED),
        hashes=hashes,
        weights=weights[["backbone", "backbone_hash"]].to_dict("records"),
        metrics=METRICS,
        states=STATES,
        tie=TIE,
        reference=REFERENCE,
    )


STYLE = """
:root { color-scheme: light; --ink: #1b1f23; --soft: #5b6570; --line: #d6dbe0; --paper: #fff; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 3rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } a { color: #0b5cad; }
nav, .soft, caption, figcaption { color: var(--soft); font-size: .88rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
thead tr:first-child th { border-top: 2px solid var(--ink); }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
tbody tr:last-child > * { border-bottom: 2px solid var(--ink); }
tbody tr:nth-child(even) > * { background: var(--wash); }
tr.first-reference > * { border-top: 1px solid var(--ink); }
th.name, td.name { text-align: left; }
.grid th.name { position: sticky; left: 0; background: var(--paper); white-space: normal;
  font-weight: 500; min-width: 8rem; max-width: 17rem; overflow-wrap: break-word; }
.grid tbody tr:nth-child(even) th.name { background: var(--wash); }
th.group { text-align: center; font-weight: 600; white-space: normal; border-left: 1px solid var(--line); }
sup { position: absolute; line-height: 1; } /* takes no width: numbers stay in line */
.list td { white-space: normal; overflow-wrap: anywhere; min-width: 4rem; }
.note { color: var(--soft); font-size: .92em; }
.failed, .diverged, .missing { color: #a8320a; }
.alarm { border: 2px solid #b3261e; border-left-width: .5rem; background: #fdf0ee; padding: .2rem 1rem; margin: 1rem 0; }
.alarm p { font-weight: 700; margin: .5rem 0; } .alarm ul { margin: .5rem 0; padding-left: 1.2rem; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; height: auto; display: block; }
.skipped { border: 1px dashed var(--line); padding: .6rem 1rem; color: var(--soft); }
code { font-size: .92em; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; max-width: 46rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; padding: .8rem .7rem 2rem; } th, td { padding: .25rem .4rem; }
  .grid th.name { min-width: 6.5rem; max-width: 8.5rem; }
  figure img { width: 100% !important; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; } nav, .links { display: none; } table { font-size: 7pt; }
  th, td { padding: .12rem .3rem; } .scroll { overflow: visible; } figure, tr, .alarm { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .grid th.name { position: static; } img { max-height: 22cm; }
  @page { margin: 14mm; }
}
"""

PAGE = """\
{% macro table(grid) %}
<div class="scroll"><table class="grid">
<thead>
<tr><th class="name"></th>
{% for lines, titles in grid.groups %}
<th class="group" colspan="{{ titles | length }}">
{%- for line in lines %}{% if not loop.first %}<br>{% endif %}{{ line }}{% endfor %}</th>
{% endfor %}
</tr>
<tr><th class="name">Method</th>
{% for lines, titles in grid.groups %}
{% for name in titles %}<th>{{ name }}</th>{% endfor %}
{% endfor %}
</tr>
</thead>
<tbody>
{% for row in grid.rows %}
<tr{% if row.reference and not loop.first and not loop.previtem.reference %} class="first-reference"{% endif %}>
<th class="name" scope="row">{{ row.label }}
{%- if row.reference %} <abbr title="a reference, not a contestant">{{ reference }}</abbr>{% endif %}</th>
{% for cell in row.cells %}
<td>{% if cell.mark == "best" %}<b>{{ cell.number }}</b>{% else %}{{ cell.number }}{% endif %}
{%- if cell.mark == "tied" %}<sup>{{ tie }}</sup>{% endif %}
{%- if cell.note %}{{ " " if cell.number else "" -}}
<span class="note {{ cell.note if cell.note in states else "" }}">{{ cell.note }}</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} - fedbench</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav><a href="#table">Table</a><a href="#figures">Figures</a><a href="#settings">Each setting</a><a href="#runs">Runs</a><a
 href="#provenance">Provenance</a><a href="#metrics">Metrics</a></nav>
{% if alarms %}
<div class="alarm" role="alert"><p>Warning: read this before comparing rows</p><ul>
{% for alarm in alarms %}
<li>{{ alarm }}</li>
{% endfor %}
</ul></div>
{% endif %}

<h2 id="table">Mean and worst accuracy</h2>
{% for grid in main %}
{{ table(grid) }}
{% endfor %}
<ul class="soft">
{% for line in legend %}
<li>{{ line }}</li>
{% endfor %}
</ul>
<p class="soft">{% for line in footer %}{{ line }}.{% if not loop.last %}<br>{% endif %}{% endfor %}</p>
<p class="links">The same table: <a href="table.csv">CSV</a> (all metrics, full precision), <a href="table.md">Markdown</a>,
<a href="table.tex">LaTeX</a>; each setting in full: <a href="details.tex">LaTeX</a>; each run: <a href="runs.csv">CSV</a>.</p>

<h2 id="figures">Figures</h2>
{% for figure in figures %}
{% if figure.files %}
<figure>
<h3>{{ figure.title }}</h3>
<img src="{{ figure.files["png"] }}" alt="{{ figure.title }}" style="width: {{ (100 * figure.width) | round | int }}%">
<figcaption>{{ figure.caption }} <a class="links" href="{{ figure.files["pdf"] }}">PDF</a></figcaption>
</figure>
{% else %}
<h3>{{ figure.title }}</h3>
<p class="skipped">{{ figure.caption }}</p>
{% endif %}
{% endfor %}

<h2 id="settings">Each setting</h2>
{% for setting, accuracy, cost in details %}
<details{% if details | length <= 6 %} open{% endif %}><summary>{{ setting }}</summary>
{{ table(accuracy) }}
{{ table(cost) }}
</details>
{% endfor %}

<h2 id="runs">Runs that are not done</h2>
{% if unfinished %}
<div class="scroll"><table class="list">
<thead><tr><th class="name">Run</th><th class="name">Method</th><th class="name">Setting</th><th>Seed</th>
<th class="name">State</th><th class="name">What it said last</th></tr></thead>
<tbody>
{% for run in unfinished %}
<tr><td class="name"><code>{{ run.run }}</code></td><td class="name">{{ run.label }}</td><td class="name">{{ run.setting }}</td>
<td>{{ run.seed }}</td><td class="name {{ run.state }}">{{ run.state }}</td><td class="name">{{ run.said }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% if more %}<p class="soft">and {{ more }} more, see <a href="runs.csv">runs.csv</a>.</p>{% endif %}
{% else %}
<p>All runs are done.</p>
{% endif %}

<h2 id="provenance">Provenance</h2>
<ul>
{% for line in footer %}
<li>{{ line }}</li>
{% endfor %}
{% for one in weights %}
<li>Backbone {{ one.backbone }}: weights <code>{{ one.backbone_hash }}</code></li>
{% endfor %}
</ul>
<details><summary>Partition of each setting and seed</summary>
<div class="scroll"><table class="list">
<thead><tr><th class="name">Setting</th><th>Seed</th><th class="name">Partition hash</th></tr></thead>
<tbody>
{% for setting, seed, hash, clash in hashes %}
<tr><td class="name">{{ setting }}</td><td>{{ seed }}</td>
<td class="name{{ " failed" if clash }}"><code>{{ hash }}</code>{{ " differ!" if clash }}</td></tr>
{% endfor %}
</tbody>
</table></div>
</details>
<p class="soft">Config hash, partition hash, backbone hash and commit of every run are in <a href="runs.csv">runs.csv</a>.</p>

<h2 id="metrics">Metrics</h2>
<dl>
{% for metric in metrics %}
<dt>{{ metric.title }} <code>{{ metric.name }}</code></dt><dd>{{ metric.meaning }}</dd>
{% endfor %}
</dl>
</body>
</html>
"""
