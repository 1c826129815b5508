#!/usr/bin/env python3
"""Draws how decoding goes with the keys and with the group: pictures of one run of the sweep.

    headwise bench --suite sweep --json > sweep.jsonl
    headwise info --json >> sweep.jsonl        # for the processor's name; may be left out
    python3 benches/decode_pictures.py sweep.jsonl

Needs matplotlib and numpy: benches/peers/requirements.txt has the versions, and the environment that
the scripts there make for themselves has both.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches" / "peers"))

import pictures
from pictures import COLOURS, MARKERS, plt
from matplotlib.ticker import NullLocator

# What the other axes are while one varies.
KEYS, GROUPS = 4096, (4, 1)


def read(lines):
    """The steps of decoding in lines of JSON, and the machine if it is among them."""
    try:
        found = [json.loads(line) for line in lines if line.strip()]
    except json.JSONDecodeError as error:
        sys.exit(f"{lines.name}: not one JSON object a line: {error}")
    steps = [row for row in found if row.get("suite") == "sweep" and row["algorithm"] == "fused"]
    machines = [row for row in found if "processor" in row]
    return steps, machines[-1] if machines else {}


def along(steps, axis, **fixed):
    """The steps that differ in one axis alone, in its order."""
    fixed = {"seq_q": 1, "cache": "dense"} | fixed
    chosen = [step for step in steps if all(step[name] == fixed[name] for name in fixed)]
    if len(chosen) < 2:
        sys.exit(f"fewer than two steps with {fixed}: these are no lines of --suite sweep --json")
    return sorted(chosen, key=lambda step: step[axis])


def title(steps, machine, text):
    processor = machine.get("processor") or steps[0]["isa"]
    return f"{text}\n{processor}, {steps[0]['threads']} threads, f32"


def rates(axes, steps, axis, **line):
    """What a step reads a second, and what it would if it took no longer than its bound."""
    places = [step[axis] for step in steps]
    label = line.pop("label")
    axes.plot(places, [step["gbps"] * step["times_bound"] for step in steps], color=line["color"],
              linewidth=1.2, linestyle=(0, (4, 2)), label=f"{label}: bound")
    axes.plot(places, [step["gbps"] for step in steps], label=label, linewidth=1.4, markersize=5.5,
              markeredgecolor="white", markeredgewidth=0.5, **line)


def finish(figure, axes, places, labels):
    """A logarithmic axis with a name at each place, and the rest of what both pictures have."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GB/s of keys and values")
    figure.legend(loc="outside lower center", ncols=2)


def contexts(steps, machine):
    """GB/s against the keys of a sequence."""
    figure, axes = plt.subplots(figsize=(8.2, 4.4), layout="constrained")
    for index, group in enumerate(GROUPS):
        line = along(steps, "seq_kv", group=group)
        name = "1 query head" if group == 1 else f"{group} query heads"
        rates(axes, line, "seq_kv", color=COLOURS[index], marker=MARKERS[index],
              label=f"{name} to a key/value head")
    places = [step["seq_kv"] for step in line]
    finish(figure, axes, places, [f"{n // 1024}k" if n >= 1024 else str(n) for n in places])
    axes.set_xlabel("keys")
    axes.set_title(title(steps, machine, "Decoding: what a step reads a second"), loc="left")
    return figure


def groups(steps, machine):
    """GB/s against the query heads to a key/value head."""
    figure, axes = plt.subplots(figsize=(8.2, 4.4), layout="constrained")
    line = along(steps, "group", seq_kv=KEYS)
    rates(axes, line, "group", color=COLOURS[0], marker=MARKERS[0], label=f"{KEYS:,} keys")
    places = [step["group"] for step in line]
    finish(figure, axes, places, [str(place) for place in places])
    axes.set_xlabel("query heads to a key/value head")
    axes.set_title(title(steps, machine, "Decoding: what sharing keys and values costs"),
                   loc="left")
    return figure


def draw(steps, machine, directory):
    """Writes decode-context.svg and decode-group.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(pictures.STYLE):
        for name, picture in (("context", contexts), ("group", groups)):
            figure = picture(steps, machine)
            figure.savefig(directory / f"decode-{name}.svg", metadata={"Date": None})
            plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=argparse.FileType(),
                        help="what the commands printed; - reads it from standard input")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures",
                        help="where the pictures go (default: docs/pictures)")
    arguments = parser.parse_args()
    draw(*read(arguments.lines), arguments.out)


if __name__ == "__main__":
    main()
