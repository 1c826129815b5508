"""The tables of the runs, in Markdown."""

from collections import Counter
from typing import Callable, NamedTuple

import summary

HEAD = """\
# Beside other libraries

Written by `{command}`; how it measures stands in `benches/peers/README.md`.

{processor}, {isa}, {threads} threads, `f32`; multiply-adds {peak:.0f} GFLOP/s, reading {read:.0f}
GB/s from memory. {versions}.

![Share of the multiply-add peak](pictures/peers-bars.svg)

![Roofline](pictures/peers-roofline.svg)

Useful GFLOP/s by the median over {rounds} rounds, and how many times as fast headwise is: the
median over the rounds of the ratio within a round, with its quartiles. {losses}

"""

DECODE = """\
## Decoding

Written by `{command}`; {processor}, {isa}, {threads} threads, `f32`,
reading {read:.0f} GB/s from memory in this run.
{versions}.

![Share of the read rate](pictures/peers-decode.svg)

GB/s of keys and values, every byte counted once, by the median over {rounds} rounds; what share
that is of the rate at which a loop reads the same bytes and does nothing else, measured beside
headwise in the same round; and how many times as fast headwise is: the median of the ratio within a
round, with its quartiles. A short sequence lies in the processor's caches: there that rate is
theirs. {losses}

"""

STRUCTURE = """\
## Windows and terms

Written by `{command}`; {processor}, {isa}, {threads} threads, `f32`,
multiply-adds {peak:.0f} GFLOP/s in this run. The
peer is FlexAttention of {versions}, compiled by `torch.compile` for these sizes, outside the time.
`window-8k-d64` sees 512 keys; `long-8k-own` multiplies scores by a constant, here by a `ScoreTerm`,
there by a `score_mod`. {losses}

"""

PRECISION = """\
## Narrower types

Written by `{command}`; {processor}, {isa}, {threads} threads,
multiply-adds of `f32` {peak:.0f} GFLOP/s, reading {read:.0f} GB/s from memory in this run.
{versions}.

All tensors are of the type that a shape is named after. Of `int8` keys and values alone: ours with a scale for
each row, OpenVINO's cache as its plugin quantises it, llama.cpp's in blocks of 32 (`q8_0`); llama.cpp's queries are
floats throughout. The first figure is the time in ms by the median over {rounds} rounds, then how many times as
fast headwise is. {losses}

"""


PYTHON = """\
## From Python

Written by `{command}`; {processor}, {isa}, {threads} threads, `f32`.
{versions}.

`torch.nn.functional.scaled_dot_product_attention` as it is, and after `headwise.torch.patch()`: what a model of
PyTorch's gets. Times in ms by the median over {rounds} rounds; how many times as fast the patched call is, and how
many times as long it takes as the same call from Rust: medians of the ratio within a round, with its
quartiles. {losses}

"""


def markdown(found):
    """The whole document of the suites' results, by their names."""
    sections = {"prefill": prefill, "decode": decode, "structure": structure,
                "precision": precision, "python": python}
    return "\n".join(section(found[name]) for name, section in sections.items() if name in found)


class Speed(NamedTuple):
    """What a table's speeds are, as texts."""

    # Ours, our share of the limit, and the name of that.
    ours: Callable
    share: Callable
    limit: str
    # A peer's.
    theirs: Callable


def gflops(found, shape, contender="headwise"):
    return f"{summary.gflops(found, shape, contender):.0f}"


def gbps(found, shape, contender="headwise"):
    return f"{summary.gbps(found, shape, contender):.1f}"


def milliseconds(found, shape, contender="headwise"):
    return f"{summary.milliseconds(found, shape, contender):.2f}"


def share_of_limit(found, shape):
    """Of the read rate where one query a sequence reads all, else of the multiply-add peak of `f32`."""
    if shape["seq_q"] == 1:
        return f"{share_of_read(found, shape)} of read"
    return f"{share_of_peak(found, shape)} of FMA"


def share_of_peak(found, shape):
    return f"{summary.percent_of_peak(found, shape):.0f} %"


def share_of_read(found, shape, contender="headwise"):
    return f"{summary.percent_of_read(found, shape, contender):.0f} %"


def gbps_and_share(found, shape, contender):
    return f"{gbps(found, shape, contender)}, {share_of_read(found, shape, contender)}"


WORK = Speed(gflops, share_of_peak, "of FMA peak", gflops)
TIME = Speed(milliseconds, share_of_limit, "of the limit", milliseconds)
READING = Speed(gbps, share_of_read, "of read rate", gbps_and_share)


def decode(found):
    """One query a sequence beside all peers."""
    head = DECODE.format(
        **machine(found), read=summary.machine_rate(found, "read_gbps"), versions=", ".join(versions(found)),
        rounds=len(found["machine"]), losses=losses(found))
    return head + speed_table(found, READING) + "\n" + ways_section(found)


def structure(found):
    """What a window and a term cost beside FlexAttention."""
    peak = summary.machine_rate(found, "peak_gflops")
    head = STRUCTURE.format(
        **machine(found), peak=peak,
        versions=", ".join(versions(found)), losses=losses(found))
    return head + speed_table(found, WORK) + "\n" + ways_section(found)


def precision(found):
    """Halves and integers beside the peers that have them."""
    head = PRECISION.format(
        **machine(found), peak=summary.machine_rate(found, "peak_gflops"),
        read=summary.machine_rate(found, "read_gbps"), versions=", ".join(versions(found)),
        rounds=len(found["machine"]), losses=losses(found))
    return head + speed_table(found, TIME) + "\n" + ways_section(found)


def python(found):
    """PyTorch's own call beside the same patched."""
    ours, theirs = found["versions"]
    table = line(["shape", "batch, heads, queries x keys, dim", ours, theirs, "times as fast",
                  "times the call from Rust"])
    table += line(["---", "---", "---:", "---:", "---:", "---:"])
    lost = 0
    for shape in found["shapes"]:
        ratio = summary.times_ours(found, shape, theirs, ours)
        lost += ratio is None or ratio.median < 1
        ratios = [ratio, summary.times_ours(found, shape, ours)]
        cells = [f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" if r else "-" for r in ratios]
        times = [f"{summary.milliseconds(found, shape, who) or float('nan'):.3f}"
                 for who in (ours, theirs)]
        table += line([f"`{shape['shape']}`", sizes(shape), *times, *cells])
    lost = f"slower on {lost} of {len(found['shapes'])} shapes" if lost else "faster on every shape"
    head = PYTHON.format(
        **machine(found), versions=", ".join(versions(found)), rounds=len(found["machine"]),
        losses=f"Patched it is {lost}.")
    return head + table + "\n" + ways_section(found)


def machine(found):
    """Where it was measured, and how."""
    of_round = found["machine"][0]
    return {"command": found["command"], "threads": found["threads"],
            "processor": of_round["processor"], "isa": of_round["isa"]}


def versions(found):
    """The packages of the peers."""
    return [f"{package} {version}" for packages in found["versions"].values()
            for package, version in packages.items()]


def prefill(found):
    """Attention beside all peers."""
    head = HEAD.format(
        **machine(found), peak=summary.machine_rate(found, "peak_gflops"),
        read=summary.machine_rate(found, "read_gbps"), versions=", ".join(versions(found)),
        rounds=len(found["machine"]), losses=losses(found))
    return head + speed_table(found, WORK) + "\n" + ways_section(found)


def losses(found):
    """How often which peer is faster."""
    count = Counter(peer for shape in found["shapes"] for peer in found["versions"]
                    if (ratio := summary.times_ours(found, shape, peer)) and ratio.median < 1)
    if not count:
        return "No peer is faster on any shape."
    parts = [f"{number} to {peer}" for peer, number in count.items()]
    return f"Of {len(found['shapes'])} shapes headwise loses {', '.join(parts)}."


def sizes(shape):
    heads = f"{shape['q_heads']}/{shape['kv_heads']}"
    parts = [str(shape["batch"]), heads, f"{shape['seq_q']} x {shape['seq_kv']}",
             str(shape["head_dim"])]
    if shape["causal"]:
        parts.append("causal")
    if shape.get("window_left") is not None:
        parts.append(f"window of {shape['window_left'] + 1}")
    if shape.get("term") == "own":
        parts.append("a term")
    return ", ".join(parts)


def line(cells):
    return f"| {' | '.join(cells)} |\n"


def cell(found, shape, peer, speed):
    ratio = summary.times_ours(found, shape, peer)
    if ratio is None:
        return "-"
    verdict = ", **loss**" if ratio.median < 1 else ""
    theirs = speed.theirs(found, shape, peer)
    return f"{theirs}; {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}){verdict}"


def speed_table(found, speed):
    peers = list(found["versions"])
    text = line(["shape", "batch, heads, queries x keys, dim", "headwise", speed.limit, *peers])
    text += line(["---", "---", "---:", "---:", *["---:"] * len(peers)])
    for shape in found["shapes"]:
        cells = [cell(found, shape, peer, speed) for peer in peers]
        ours = [speed.ours(found, shape), speed.share(found, shape)]
        text += line([f"`{shape['shape']}`", sizes(shape), *ours, *cells])
    return text


def ways_section(found):
    """Which way each peer was fastest in, and what was not measured."""
    text = "A peer's way on a shape is the fastest of those it offers, chosen before the rounds:\n\n"
    for peer in found["versions"]:
        shapes = {}
        for name, ways in found["ways"].items():
            shapes.setdefault(ways[peer]["way"] or "none", []).append(name)
        parts = [f"{way} ({', '.join(f'`{name}`' for name in names)})"
                 for way, names in shapes.items()]
        text += f"- {peer}: {'; '.join(parts)}.\n"
    return text + left_out(found)


def left_out(found):
    """Ways that gave another result or none; empty where there are none."""
    reasons = {}
    for name, peers in found["ways"].items():
        for peer, ways in peers.items():
            for way, result in ways["ways"].items():
                if "refused" in result:
                    reasons.setdefault((peer, way, "refused"), []).append(name)
                elif result["seconds"] is None:
                    reasons.setdefault((peer, way, "another result"), []).append(name)
    lines = [f"- {peer}, {way}: {reason} on {', '.join(f'`{name}`' for name in names)}.\n"
             for (peer, way, reason), names in reasons.items()]
    return "\nLeft out:\n\n" + "".join(lines) if lines else ""
