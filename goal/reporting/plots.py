"""Figures of the report: recall, recall by length, losses, similarities; for the page and as pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from goal.evaluation.galleries import DIRECTIONS
from goal.evaluation.results import Result
from goal.reporting.pictures import BLUE, BROWN, COLOURS, GOLD, GREEN, GREY, PINK, SKY, VERMILION
from goal.runtime.files import atomic

MODEL_COLOURS = {
    "zero-shot": GREY,
    "stage1": SKY,
    "stage2": GOLD,
    "global": GREEN,
    "global+local": PINK,
    "balanced": VERMILION,
    "mixed": BLUE,
}
OTHER_COLOUR = BROWN
# Groups of fewer queries are not joined to their neighbours.
JOINED = 30
# Stands for the text colour of the page, whichever its theme.
INK = "#0a0b0c"
TITLES = {"text_to_image": "text → image", "image_to_text": "image → text"}
# The same bytes every run: no date, ids from a fixed salt. Text stays text, in the page's font.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "goal",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@matplotlib.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """The figure as an element of a page: transparent, in the page's own text colour."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None}, bbox_inches="tight")
    content = text.getvalue()
    return content[content.index("<svg") :].replace(INK, "currentColor")


def png(figure: Figure, path: Path) -> None:
    """The figure as a picture on white."""
    with matplotlib.rc_context(STYLE), atomic(path) as draft:
        figure.savefig(draft, format="png", dpi=150, facecolor="white", bbox_inches="tight")


@matplotlib.rc_context(STYLE)
def recall_bars(results: Sequence[Result], metric: str, label: str) -> Figure:
    """One metric of every model in both directions, with 95 % intervals; the dashed line is chance."""
    figure = Figure(figsize=(7.5, 0.6 + 0.38 * len(results)))
    axes = figure.subplots(1, 2, sharey=True)
    highest = max(one.metrics[f"{direction}_{metric}"]["high"] for one in results for direction in DIRECTIONS)
    for ax, direction in zip(axes, DIRECTIONS, strict=True):
        chance = results[0].metrics[f"{direction}_{metric}"].get("chance")
        if chance is not None:
            ax.axvline(chance, color=INK, linestyle="--", linewidth=1)
        for place, result in enumerate(results):
            found = result.metrics[f"{direction}_{metric}"]
            ax.barh(place, found["mean"], color=_colour(result.model), height=0.7)
            ax.errorbar(found["mean"], place, xerr=_whiskers([found]), color=INK, capsize=3, linewidth=1)
            ax.text(found["high"] + highest / 100, place, f"{found['mean']:.1f}", va="center")
        ax.set(title=f"{TITLES[direction]}, {label}", xlim=(0, 1.15 * highest))
        ax.set_yticks(range(len(results)), [result.model for result in results])
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    figure.tight_layout()
    return figure


@matplotlib.rc_context(STYLE)
def by_group(results: Sequence[Result], group: str, metric: str, label: str) -> Figure:
    """One metric of every model in both directions by group of queries, with the queries of each."""
    figure = Figure(figsize=(7.5, 3.2))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, direction in zip(axes, DIRECTIONS, strict=True):
        key = f"{direction}_{metric}"
        names = [name for name, found in results[0].by[group].items() if key in found]
        counts = [results[0].by[group][name][key]["queries"] for name in names]
        for number, result in enumerate(results):
            found = [result.by[group][name][key] for name in names]
            means = [one["mean"] for one in found]
            # Side by side, so that intervals do not hide each other.
            places = [place + 0.08 * (number - (len(results) - 1) / 2) for place in range(len(names))]
            colour = _colour(result.model)
            ax.errorbar(places, means, _whiskers(found), fmt="o", color=colour, label=result.model)
            # Lengths follow on each other, kinds do not.
            if group != "attribute":
                ax.plot(places, np.where(np.array(counts) >= JOINED, means, np.nan), color=colour)
        ticks = [f"{name}\nn={count}" for name, count in zip(names, counts, strict=True)]
        ax.set_xticks(range(len(names)), ticks)
        ax.set(title=TITLES[direction])
    # Both panels share the axis.
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


@matplotlib.rc_context(STYLE)
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """The terms of the loss over the steps, one panel per model; curves: the columns of loss.csv by model."""
    terms = list(dict.fromkeys(name for curve in curves.values() for name in curve))
    terms = [name for name in terms if name not in ("step", "lr")]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(reversed(terms))}
    figure = Figure(figsize=(7.5, 2.6 * ((len(curves) + 1) // 2)))
    panels = figure.subplots((len(curves) + 1) // 2, min(2, len(curves)), squeeze=False).flatten()
    for ax, (model, curve) in zip(panels, curves.items(), strict=False):
        for name in reversed(terms):
            if name in curve:
                ax.plot(curve["step"], curve[name], color=colours[name], label=name, linewidth=1.3)
        ax.set(title=model, xlabel="step", ylim=(0, None))
    for ax in panels[len(curves) :]:
        ax.set_axis_off()
    lines = {
        label: line for ax in panels for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines))
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def _whiskers(found: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """How far the 95 % intervals reach below and above their means."""
    return [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]]


@matplotlib.rc_context(STYLE)
def mixture(curve: Mapping[str, Sequence[float]], chosen: float) -> Figure:
    """Recall on long and short captions along the way from zero-shot to the trained weights."""
    figure = Figure(figsize=(7.5, 2.6))
    ax = figure.subplots()
    for name, colour in (("long", VERMILION), ("short", GREEN)):
        ax.plot(curve["alpha"], curve[name], marker="o", color=colour, label=f"{name} captions")
    ax.axvline(chosen, color=INK, linestyle="--", linewidth=1, label=f"chosen: {chosen:g}")
    ax.set(xlabel="alpha (0: zero-shot, 1: trained)", ylabel="recall, percent")
    ax.legend()
    figure.tight_layout()
    return figure


@matplotlib.rc_context(STYLE)
def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> Figure:
    """Counts of sentences between `edges`."""
    figure = Figure(figsize=(7.5, 2.4))
    ax = figure.subplots()
    widths = [end - start for start, end in zip(edges, edges[1:], strict=False)]
    ax.bar(edges[:-1], counts, widths, align="edge", color=OTHER_COLOUR, linewidth=0)
    ax.set(xlabel=label, ylabel="sentences")
    figure.tight_layout()
    return figure


def read_curve(path: Path) -> dict[str, list[float]]:
    """The columns of a loss.csv; empty lists for a model that took no step."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return {name: [float(row[name] or "nan") for row in rows] for name in reader.fieldnames or []}


def _colour(model: str) -> str:
    return MODEL_COLOURS.get(model, OTHER_COLOUR)
