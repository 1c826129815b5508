"""The pictures of a run."""

from typing import NamedTuple

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

import summary

# Ours first; distinct in lightness as well as in hue.
COLOURS = ["#0b3c5d", "#d95f02", "#66a61e", "#7570b3", "#9a9a9a", "#e7298a"]
MARKERS = ["o", "s", "^", "D", "v"]
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "font.family": "DejaVu Sans",
    "font.size": 9, "axes.edgecolor": "#555555", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8, "legend.frameon": False, "svg.hashsalt": "headwise",
}


def draw(found, directory):
    """Writes peers-bars.svg, peers-roofline.svg and peers-decode.svg, of the results there are."""
    pictures = [("bars", work_bars, "prefill"), ("roofline", roofline, "prefill"),
                ("decode", read_bars, "decode")]
    with plt.rc_context(STYLE):
        for name, picture, suite in pictures:
            if suite not in found:
                continue
            figure = picture(found[suite])
            figure.savefig(directory / f"peers-{name}.svg", metadata={"Date": None})
            plt.close(figure)


def title(found, text):
    processor = found["machine"][0]["processor"]
    return f"{text}\n{processor}, {found['threads']} threads, f32"


def speeds(found, contender, figure=summary.gflops):
    values = [figure(found, shape, contender) for shape in found["shapes"]]
    return np.array([np.nan if value is None else value for value in values])


def label(shape):
    name = shape["shape"]
    return f"{name} (causal)" if shape["causal"] and "causal" not in name else name


class Limit(NamedTuple):
    """What no bar should pass, and how it is named."""

    value: float
    name: str


def work_bars(found):
    peak = summary.machine_rate(found, "peak_gflops")
    figure, axes = bars(found, summary.gflops, Limit(peak, f"multiply-add peak, {peak:.0f}"))
    axes.set_xlabel("useful GFLOP/s")
    axes.set_title(title(found, "Attention: useful work a second"), loc="left")
    return figure


def read_bars(found):
    figure, axes = bars(found, summary.percent_of_read, Limit(100, "the same bytes only read"))
    axes.set_xlabel("keys and values a second, % of the read rate")
    axes.set_title(title(found, "Decoding: one query a sequence"), loc="left")
    return figure


def bars(found, value, limit):
    """A group of bars for each shape, one for each contender; `value` gives their lengths."""
    shapes, contenders = found["shapes"], summary.contenders(found)
    figure, axes = plt.subplots(
        figsize=(8.2, 1.5 + 0.105 * len(shapes) * (len(contenders) + 1)), layout="constrained")
    places = np.arange(len(shapes)) * (len(contenders) + 1)
    longest = limit.value
    for index, contender in enumerate(contenders):
        lengths = speeds(found, contender, value)
        longest = max(longest, np.nanmax(lengths, initial=0))
        axes.barh(places + index, lengths, height=0.9, label=contender, color=COLOURS[index])
    axes.axvline(limit.value, color="#333333", linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(limit.name, (limit.value, places[-1] + len(contenders)),
                  xytext=(-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    labels = [label(shape) for shape in shapes]
    axes.set_yticks(places + (len(contenders) - 1) / 2, labels)
    axes.set_ylim(places[-1] + len(contenders) + 0.7, -1)
    axes.set_xlim(0, longest * 1.02)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=len(contenders))
    return figure, axes


def roofline(found):
    shapes = found["shapes"]
    peak = summary.machine_rate(found, "peak_gflops")
    bandwidth = summary.machine_rate(found, "read_gbps")
    intensities = np.array([summary.intensity(shape) for shape in shapes])
    left, right = min(1.0, intensities.min() / 2), intensities.max() * 2
    figure, axes = plt.subplots(figsize=(8.2, 5.4), layout="constrained")
    line = np.geomspace(left, right, 200)
    axes.plot(line, np.minimum(peak, line * bandwidth), color="#333333", linewidth=1.4)
    axes.annotate(f"peak, {peak:.0f} GFLOP/s", (left, peak), xytext=(4, 4),
                  textcoords="offset points", fontsize=8)
    axes.annotate(f"memory, {bandwidth:.0f} GB/s", (left * 1.15, left * 1.15 * bandwidth),
                  xytext=(8, 0), textcoords="offset points", va="top", fontsize=8)
    lowest = peak
    for index, contender in enumerate(summary.contenders(found)):
        values = speeds(found, contender)
        lowest = min(lowest, np.nanmin(values))
        axes.plot(intensities, values, MARKERS[index], color=COLOURS[index], markersize=5.5,
                  label=contender, alpha=0.9, linestyle="none", markeredgecolor="white",
                  markeredgewidth=0.5, zorder=10 - index)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(lowest, left * bandwidth) * 0.8, peak * 3.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    name_shapes(axes, shapes, intensities, peak)
    axes.set_xlabel("useful FLOP per byte of queries, keys, values and output")
    axes.set_ylabel("useful GFLOP/s")
    axes.set_title(title(found, "Attention and the limits of the machine"), loc="left")
    figure.legend(loc="outside lower center", ncols=index + 1)
    return figure


def name_shapes(axes, shapes, intensities, peak):
    """Writes the names upright above the peak, pushed apart where they would overlap."""
    left, right = np.log10(axes.get_xlim())
    gap = (right - left) / 48
    order = np.argsort(intensities, kind="stable")
    wanted = np.log10(intensities[order])
    places = wanted.copy()
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    # Back by half of what the longest row of neighbours was pushed.
    places -= (places - wanted).max() / 2
    for index, (place, at) in enumerate(zip(10 ** places, 10 ** wanted)):
        axes.plot([at, place], [peak, peak * 1.2], color="#999999", linewidth=0.6)
        axes.annotate(shapes[order[index]]["shape"], (place, peak * 1.25), rotation=90,
                      ha="center", va="bottom", fontsize=7.5)
