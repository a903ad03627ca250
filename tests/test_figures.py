"""Figures: all are drawn, none is empty, they are reproducible, and every method is at the position of its numbers."""

from __future__ import annotations

import io
import json
import re
import shutil
import zlib
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from written import write_run

from fedbench.report import pictures, run_artifacts, writer
from fedbench.report.evidence import gather
from fedbench.report.figures import clients, frame, inside, report_figures, scores, style, tuned, varied
from fedbench.report.figures.fonts import FONT_LAYOUT, fonts_looked_up_once
from fedbench.report.figures.frame import PANELS
from fedbench.report.statistics import Ranking
from fedbench.report.tables import contests


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 17 methods, two alphas and two seeds, with one run of each state."""
    place = tmp_path_factory.mktemp("report")
    for number in range(17):
        for alpha in (0.1, 0.3):
            for seed in range(2):
                state = {(1, 1): "running", (2, 1): "failed", (3, 1): "diverged", (4, 0): "pending", (4, 1): "pending"}
                now = state.get((number, seed), "done") if alpha == 0.3 else "done"
                top = 0.5 + 0.02 * number + 0.01 * seed
                curve = {at: top * (1 - 0.5**at) for at in range(1, 21)} if number else {20: top}
                upto = dict(list(curve.items())[:9]) if now != "done" else curve
                sent = 0 if number == 0 else 10**number
                bytes_ = {"total_bytes_up": sent, "total_bytes_down": sent}
                write_run(
                    place / "results", f"Method {number}", seed, upto, state=now, alpha=alpha, reference=number == 0,
                    clients=True, **bytes_,
                )  # fmt: skip
    writer.write(gather([], place / "results"), place / "out")
    return place


DRAWN = {
    *(
        "rounds",
        "bytes",
        "compute",
        "iqm",
        "profiles",
        "improvement",
        "outcomes",
        "by-partition-alpha",
        "worst",
        "cost",
    ),
    *("heat", "ranks", "clients", "duel", "split"),
}


@pytest.mark.slow
def test_figures_are_written_and_hold_something(made: Path) -> None:
    names = {path.name for path in (made / "out" / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in DRAWN for kind in ("svg", "pdf")}
    for name in DRAWN:
        pdf = (made / "out" / "figures" / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType outlines are embedded, fonttype 42
        assert b"/Type3" not in pdf
        assert b"CreationDate" not in pdf
        svg = (made / "out" / "figures" / f"{name}.svg").read_text()
        assert svg.rstrip().endswith("</svg>")
        assert svg.count("<path") > 20
        assert not re.search(r"<dc:date>", svg)


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "results", tmp_path / "results")  # the page names the folder as seen from its own
    writer.write(gather([], tmp_path / "results"), tmp_path / "out")
    files = sorted(path.relative_to(made / "out") for path in (made / "out").rglob("*") if path.is_file())
    assert len(files) > 10
    for file in files:
        assert (made / "out" / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file


def light(colour: str) -> np.ndarray:
    """Linear RGB of a colour like #0072B2."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB: a distance of 2.3 is just noticeable."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes 2009: what people without green cones see, in linear RGB
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


def test_looks_differ_by_more_than_the_marker_in_grey_and_without_green_cones() -> None:
    looks = list(style.looks([f"m{i}" for i in range(14)]).values())
    for first, second in combinations(looks, 2):
        assert first.marker != second.marker
        if first.line == second.line:
            colours = light(first.colour), light(second.colour)
            grey = [lab(np.full(3, [0.2126, 0.7152, 0.0722] @ colour))[0] for colour in colours]
            colours_seen = [lab(np.clip(DEUTERANOPIA @ colour, 0, 1)) for colour in colours]
            assert abs(grey[0] - grey[1]) > 9
            assert np.linalg.norm(colours_seen[0] - colours_seen[1]) > 9
    for first, second in pairwise(looks):  # variants of a method stand next to each other
        assert first.line != second.line
        assert first.hollow != second.hollow


def test_looks_differ_for_28_methods_and_stay_with_their_label() -> None:
    names = [f"m{i}" for i in range(29)]
    looks = style.looks(names, ["m3"])
    assert len({(look.colour, look.line) for look in looks.values()}) == 29
    assert looks["m3"].colour == "#000000"
    assert style.looks(names[:5], ["m3"])["m4"] == looks["m4"]


def test_figures_without_data_are_skipped_and_the_page_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "r", state="pending")
    written = writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    assert written.figures == ()
    html = written.page.read_text()
    # no heat map without a cell, no tuning without a trial, no privacy without noise, no metric that no run measured
    assert html.count("Not drawn:") == len(report_figures.NAMES) - 5
    assert "no two finished runs of a method differ in one field" in html


def test_figures_of_an_earlier_report_do_not_linger(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "out", out)
    (out / "figures" / "mine.png").write_bytes(b"")
    write_run(tmp_path / "r", state="pending")
    writer.write(gather([], tmp_path / "r"), out)
    assert [path.name for path in (out / "figures").iterdir()] == ["mine.png"]


def test_more_settings_than_panels_make_more_figures_up_to_a_stated_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "MOST", 2 * PANELS)
    for i in range(2 * PANELS + 1):
        write_run(tmp_path, alpha=0.1 * (i + 1))
    evidence = gather([], tmp_path)
    sketches = report_figures.all_figures(evidence, {}, contests.overall(evidence.runs)).sketches
    rounds = [sketch.drawing for sketch in sketches if sketch.drawing.title == "Accuracy over rounds"]
    assert [drawing.name for drawing in rounds] == ["rounds", "rounds-2"]
    assert "1 more are not drawn" in rounds[0].caption


# -- what is varied ----------------------------------------------------------------------------------------------------
def of(tmp_path: Path, **evidence: str) -> dict[str, list[varied.Family]]:
    runs = gather([], tmp_path).runs
    return varied.families(runs[runs["state"] == "done"])


def test_partitions_without_a_common_number_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path, alpha=0.1)
    write_run(tmp_path, config={"partition": {"name": "iid"}}, partition="iid")
    (family,) = of(tmp_path)[""]
    assert not family.numeric
    assert sorted(family.runs["level"]) == ["dirichlet 0.1", "iid"]


def test_every_field_that_varies_alone_becomes_an_axis(tmp_path: Path) -> None:
    for length in (4, 8):
        for inject in (2, 3):
            write_run(
                tmp_path, f"pep(prompt_length={length}, inject={inject})", method="pep",
                config={"method": {"name": "pep", "prompt_length": length, "inject": inject}},
            )  # fmt: skip
    write_run(tmp_path, "other", config={"method": {"name": "other", "prompt_length": 4}})
    families = of(tmp_path)
    assert set(families) == {"method.prompt_length", "method.inject"}
    (family,) = families["method.prompt_length"]
    assert family.numeric
    assert sorted(set(family.runs["line"])) == ["pep(inject=2)", "pep(inject=3)"]  # `other` varies nothing
    assert sorted(family.runs["level"]) == [4, 4, 8, 8]


def test_a_choice_is_drawn_as_words_and_participation_as_panels_of_a_partition(tmp_path: Path) -> None:
    for prior in ("client", "uniform"):
        write_run(tmp_path, f"pep {prior}", method="pep", config={"method": {"name": "pep", "prior": prior}})
    for cohort in (1, 2):
        write_run(tmp_path, "A", config={"clients": {"number": 9, "per_round": cohort}})
    families = of(tmp_path)
    (choice,) = families["method.prior"]
    assert not choice.numeric
    assert set(choice.runs["line"]) == {"pep"}
    (cohorts,) = families["clients.per_round"]
    assert sorted(cohorts.runs["level"]) == [1, 2]
    assert cohorts.title == "glyphs · dirichlet 0.3"


def test_values_that_a_tuning_chose_count_as_no_difference(tmp_path: Path) -> None:
    for alpha, lr in ((0.1, 0.5), (0.3, 0.05)):
        write_run(tmp_path, alpha=alpha, config={"local": {"lr": lr}}, tuning={"values": {"local.lr": lr}})
    (family,) = of(tmp_path)["partition.alpha"]
    assert sorted(family.runs["level"]) == [0.1, 0.3]
    assert "local.lr" not in of(tmp_path)


# -- single panels -----------------------------------------------------------------------------------------------------
def test_the_pareto_front_by_hand() -> None:
    points = np.array([[1.0, 5.0], [2.0, 4.0], [2.0, 3.0], [3.0, 1.0], [0.5, 4.9]])
    assert scores.pareto(points).tolist() == [True, True, False, True, False]


def test_a_method_offers_its_own_picture(tmp_path: Path) -> None:
    """The hook `picture` of PEP-FedPT: row c are the weights for an input whose query is the prototype of class c."""
    import torch

    from fedbench.plan.plugins import plugins

    mean = np.random.default_rng(0).normal(size=(4, 6))
    prior = np.array([0.5, 0.5, 0.0, 0.0])
    method = plugins().classes["method"]["pep_fedpt"](temperature=0.3)
    panels = method.picture({"prototype": torch.from_numpy(mean)}, torch.from_numpy(prior))
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    scores_ = np.exp(unit @ unit.T / 0.3)
    np.testing.assert_allclose(panels["equal priors"], scores_ / scores_.sum(1, keepdims=True), rtol=1e-9)
    weighed = scores_ * ((1 - 1e-3) * prior + 1e-3 / 4)  # a thousandth of uniform mass, as the method smooths
    np.testing.assert_allclose(panels["prior of a client"], weighed / weighed.sum(1, keepdims=True), rtol=1e-6)
    assert plugins().classes["method"]["fedvpt"]().picture is None


class Shown:
    """A method of a user with a picture."""

    def picture(self, server: dict[str, Any], prior: Any) -> dict[str, Any]:
        """What it knows.

        More words, which are no caption.
        """
        return {"all": server["prompt"], "prior": prior[None]}


class Broken(Shown):
    """A method of a user with a mistake."""

    def picture(self, server: dict[str, Any], prior: Any) -> dict[str, Any]:
        """What it does not know."""
        return {"all": 1 / 0}


def test_pictures_are_taken_from_the_last_state_of_a_finished_run(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = write_run(tmp_path, "A", clients=True)
    values = np.array([[0.0, 0.25, 1.0], [1.0, 0.0, 0.5]], dtype=np.float32)
    save_file({"server.prompt": values, "total.seconds": np.ones(1)}, folder.path / "checkpoint.safetensors")
    planned = SimpleNamespace(
        label="A", name=folder.path.name, tuning={}, run=SimpleNamespace(method={}, dataset={}, partition={})
    )
    made = SimpleNamespace(make=lambda kind, block: Shown())
    pictures_, notes = pictures.pictures_of([planned], made, tmp_path)  # type: ignore[list-item,arg-type]
    caption, panels = pictures_[folder.path.name]
    assert (caption, notes) == ("What it knows.", [])
    np.testing.assert_array_equal(panels["all"], values)
    # client 0 holds 1 sample of class 0 and 8 of class 1 (see `write_run`)
    np.testing.assert_allclose(panels["prior"][0, :2], [1 / 9, 8 / 9])
    others = []
    for label, alpha, trial in (("again", 0.3, ""), ("B", 0.1, ""), ("C", 0.3, "A"), ("D", 0.3, "")):
        copy = write_run(tmp_path, label, alpha=alpha, clients=True)
        save_file({"server.prompt": values}, copy.path / "checkpoint.safetensors")
        run_ = SimpleNamespace(method={}, dataset={}, partition={} if alpha == 0.3 else {"alpha": alpha})
        tuning = {"trial_of": trial} if trial else {}
        label = "A" if label == "again" else label
        others.append(SimpleNamespace(label=label, name=copy.path.name, tuning=tuning, run=run_))
    several, _ = pictures.pictures_of([planned, *others], made, tmp_path)  # type: ignore[list-item,arg-type]
    assert list(several) == [planned.name, others[-1].name]  # one of each method, all of one setting, no trials
    broken = SimpleNamespace(make=lambda kind, block: Broken())
    assert pictures.pictures_of([planned], broken, tmp_path) == (  # type: ignore[list-item,arg-type]
        {},
        ["A: its picture() failed (ZeroDivisionError: division by zero)."],
    )


def test_prompts_of_a_run_are_found_in_its_checkpoint(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = write_run(
        tmp_path / "r", "pep", method="pep_fedpt", clients=True, config={"method": {"name": "pep_fedpt"}}
    )
    draw = np.random.default_rng(0)
    tensors = {"server.prompt": draw.normal(size=(3, 8)), "server.class_prompt": draw.normal(size=(40, 2, 8))}
    tensors |= {"server.prototype": draw.normal(size=(40, 8)), "server.head.weight": draw.normal(size=(40, 8))}
    tensors |= {"client.prompt.2": draw.normal(size=(3, 8)), "client.prompt.11": draw.normal(size=(3, 8))}
    save_file(tensors, folder.path / "checkpoint.safetensors")
    state = run_artifacts.state(folder.path, inside.TENSORS)
    assert set(state) == {"server.prompt", "server.class_prompt", "server.prototype", "client.prompt"}
    np.testing.assert_array_equal(state["client.prompt"][1], tensors["client.prompt.11"])
    sets = inside.sets(state)
    assert {name: len(points) for name, points in sets.items()} == {"shared": 3, "class": 40, "client": 2}
    np.testing.assert_allclose(sets["class"], tensors["server.class_prompt"].mean(1))
    written = writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    assert "prompts.svg" in {path.name for path in written.figures}
    assert run_artifacts.state(tmp_path, inside.TENSORS) == {}
    numbers = {"server.x": np.ones(2, np.float32), "server.n": np.array([7], np.int64), "client.x.1": np.ones(2)}
    (tmp_path / "other").mkdir()
    save_file(numbers, tmp_path / "other" / "checkpoint.safetensors")
    values = run_artifacts.server_state(tmp_path / "other")
    assert {name: (value.tolist(), value.dtype.name) for name, value in values.items()} == {
        "server.x": ([1, 1], "float64"),
        "server.n": ([7], "int64"),
    }
    (folder.path / "checkpoint.safetensors").write_bytes(b"cut")
    assert run_artifacts.state(folder.path, inside.TENSORS) == {}


def test_class_counts_by_client(tmp_path: Path) -> None:
    counts = run_artifacts.class_counts(write_run(tmp_path, clients=True).path)
    # client k holds k + 1 samples of class 0 and 8 - k of class k + 1 (see `write_run`)
    assert counts[counts["client"] == 2].to_numpy().tolist() == [[2, 0, 3], [2, 3, 6]]
    assert run_artifacts.class_counts(tmp_path).empty


def test_the_plane_keeps_distances_of_points_in_a_plane() -> None:
    draw = np.random.default_rng(0)
    flat = draw.normal(size=(10, 2))
    turned = flat @ np.linalg.qr(draw.normal(size=(7, 2)))[0].T
    plane = inside.plane(turned)
    np.testing.assert_allclose(
        np.linalg.norm(plane[:, None] - plane[None], axis=-1),
        np.linalg.norm(flat[:, None] - flat[None], axis=-1),
        atol=1e-9,
    )


def test_a_duel_counts_who_is_ahead() -> None:
    figure = Figure()
    axes = figure.subplots()
    rows = [("A", 0, 90.0), ("A", 1, 50.0), ("A", 2, 20.0), ("B", 0, 80.0), ("B", 1, 50.0), ("B", 2, 10.0)]
    frame = pd.DataFrame(rows, columns=["label", "client", "accuracy"]).assign(seed=0)
    clients.duel(axes, frame, "A", "B", style.looks(["A", "B"]))
    assert [text.get_text() for text in axes.texts] == ["2 of 3 gain", "1 tie, 0 lose"]
    assert axes.lines[1].get_ydata().tolist() == [90, 50, 20]


LONG = [f"pep_fedpt(inject=3, prototypes=shuffled, temperature=0.{i})" for i in range(7)]
HEADS = [f"glyphs(train_per_class=6, test_per_class=2) · dirichlet(alpha={i / 10})" for i in range(1, 12)]


def overflow(figure: Figure) -> list[str]:
    """Texts of a figure as it is saved that reach over its edge, or over a neighbour on the same axis."""
    frame.save(figure, ("png",))
    renderer = FigureCanvasAgg(figure).get_renderer()
    edge, cut = figure.bbox.padded(1.0), []
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if tick.label1.get_visible()]
            shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]  # others are not drawn
            boxes = [text.get_window_extent(renderer) for text in shown]
            cut += [
                text.get_text()
                for text, (first, second) in zip(shown, pairwise(boxes), strict=False)
                if first.overlaps(second)
            ]
            texts += shown
        for text in texts:
            box = text.get_window_extent(renderer)
            if text.get_text().strip() and not (edge.contains(*box.min) and edge.contains(*box.max)):
                cut.append(text.get_text())
    return cut


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("columns", [1, 3, 11])
def test_the_heat_map_has_room_for_its_words(rows: int, columns: int) -> None:
    values = pd.DataFrame(np.random.default_rng(0).random((rows, columns)), LONG[:rows], HEADS[:columns])
    with style.style():
        assert overflow(scores.heat(values, "")) == []


@pytest.mark.parametrize("names", [["a", "b", "c"], LONG, [name + " [clients.number=20]" for name in LONG]])
def test_average_ranks_have_room_for_their_names(names: list[str]) -> None:
    cliques = tuple((i, i + 1) for i in range(len(names) - 1))
    ranking = Ranking(tuple(names), tuple(1 + 0.9 * i for i in range(len(names))), 9, cliques)
    with style.style():
        assert overflow(scores.average_ranks(ranking, style.looks(names))) == []


@pytest.mark.parametrize("labels", [["a", "b", "c"], pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def test_no_figure_of_a_report_has_words_beyond_its_edge_or_over_each_other(tmp_path: Path, labels: list[str]) -> None:
    for label in labels:
        for alpha in (0.1, 0.3):
            for seed in range(2):
                spent = {"total_bytes_up": 10 ** (3 + labels.index(label)), "total_multiply_adds": 0}
                top = 0.5 + 0.02 * labels.index(label) + alpha / 10 + 0.01 * seed
                write_run(
                    tmp_path, label, seed, {10: top - 0.1, 20: top}, alpha=alpha, clients=True,
                    held_out_mean_accuracy=top - 0.1, **spent,
                )  # fmt: skip
    evidence = gather([], tmp_path)
    within = contests.within(evidence.runs, evidence.clients)
    sketches = report_figures.all_figures(evidence, within, contests.overall(evidence.runs)).sketches
    drawn = 0
    with style.style():
        for sketch in sketches:
            if sketch.make is not None:
                assert overflow(sketch.make()) == [], sketch.drawing.name
                drawn += 1
    assert drawn > 12


@pytest.mark.parametrize(
    ("costs", "scale", "ticks"),
    [
        ([0.0, 350e9, 356e9], "linear", 0.0),  # nothing beside 350 G: an axis from zero
        ([3e9, 9e9], "linear", 0.0),
        ([0.0, 1e6, 1e9], "symlog", 0.0),
        ([1e6, 1e9], "log", None),
    ],
)
def test_axes_of_costs_start_at_zero_or_are_logarithmic(costs: list[float], scale: str, ticks: float | None) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot(costs, [1.0] * len(costs), "o")
    frame.cost_axis(axes, costs)
    assert axes.get_xscale() == scale
    if ticks is not None:
        low, high = axes.get_xlim()
        assert low <= 0 < max(costs) < high
        assert ticks in axes.get_xticks()


def test_the_tuning_figure_has_the_best_so_far_and_no_lines_between_points() -> None:
    rows = [
        (
            "S",
            "A",
            0,
            i,
            value,
            "done" if np.isfinite(value) else "diverged",
            value == 60.0,
            20,
            json.dumps({"local.lr": lr}),
            "search",
        )
        for i, (value, lr) in enumerate([(40.0, 0.01), (30.0, 0.1), (60.0, 0.03), (np.nan, 3.0), (50.0, 0.05)])
    ]
    columns = ["setting", "label", "seed", "number", "validation", "state", "chosen", "rounds", "values", "kind"]
    trials = pd.DataFrame(rows, columns=columns)
    look = style.looks(["A"])
    axes = Figure().subplots()
    tuned.over_trials(axes, trials, look)
    assert axes.lines[0].get_ydata().tolist() == [40, 40, 60, 60]
    assert axes.lines[0].get_drawstyle() == "steps-post"
    axes = Figure().subplots()
    tuned.by_value(axes, tuned.unfolded(trials), look)
    assert {line.get_linestyle() for line in axes.lines if len(line.get_xdata()) > 1} == {"None"}
    assert axes.lines[0].get_xdata().tolist() == [0.01, 0.1, 0.03, 3.0, 0.05]
    assert axes.get_xlabel() == "local.lr"


def test_fonts_that_are_looked_up_once_give_the_same_bytes_and_leave_nothing_behind() -> None:
    def saved() -> dict[str, bytes]:
        figure = Figure(figsize=(2, 1), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], label="fedvpt")
        axes.set(title="α ≈ 1", xlabel="rounds")
        axes.legend()
        return frame.save(figure)

    manager = font_manager.fontManager
    with style.style():
        plain = saved()
        with fonts_looked_up_once():
            assert "_find_fonts_by_props" in vars(manager)
            assert saved() == plain
    assert "_find_fonts_by_props" not in vars(manager)


def test_fonts_of_a_pdf_are_embedded_without_the_tables_that_lay_out_text() -> None:
    """A viewer of PDF places glyphs by number; a font with these tables takes twice as long to cut down."""
    with style.style():
        figure = Figure(figsize=(1, 1))
        figure.text(0.1, 0.5, "AV fi – ± ≈")
        (data,) = frame.save(figure, ("pdf",)).values()
    streams = [zlib.decompress(part.split(b"endstream")[0].strip(b"\r\n")) for part in data.split(b"stream\n")[1::2]]
    fonts = [stream for stream in streams if stream[:4] == b"\0\1\0\0"]
    assert fonts
    for font in fonts:
        tables = set(TTFont(io.BytesIO(font)).keys())
        assert {"glyf", "loca", "cmap", "head", "hmtx"} <= tables
        assert not tables & set(FONT_LAYOUT)
