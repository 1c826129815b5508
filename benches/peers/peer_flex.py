"""PyTorch's FlexAttention, compiled by its own compiler, which needs a compiler of C++."""

import shutil

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from peer import Call
from peer_torch import TorchPeer
from reference import OWN_FACTOR


def times(score, batch, head, query, key):
    return score * OWN_FACTOR


class FlexPeer(TorchPeer):
    name = "FlexAttention"

    def __init__(self, threads):
        super().__init__(threads)
        self.compiled = torch.compile(flex_attention, dynamic=False)

    def ways(self, shape):
        """By the sides of the blocks that a mask's blocks are."""
        sides = (128, 64, 32)
        return [f"blocks of {side}" for side in sides] if shape["causal"] else ["no blocks"]

    def prepare(self, shape, way, query, key, value):
        if shutil.which("g++") is None:
            raise FileNotFoundError("FlexAttention needs g++: apt-get install g++")
        if shape["document"] is not None or shape.get("term") not in (None, "own"):
            raise ValueError("measured with windows and with a score_mod that multiplies")
        tensors = [torch.from_numpy(x).clone() for x in (query, key, value)]
        options = {}
        if shape.get("term"):
            options["score_mod"] = times
        if shape["causal"]:
            options["block_mask"] = block_mask(shape, int(way.removeprefix("blocks of ")))
        out = None

        def run():
            nonlocal out
            out = self.compiled(*tensors, **options)

        # Compiled outside of what is timed.
        run()
        return Call(run, lambda: out.numpy())


def block_mask(shape, side):
    """The causal mask, and the window if there is one, in square blocks."""
    left = shape["seq_kv"] if shape["window_left"] is None else shape["window_left"]

    def visible(batch, head, query, key):
        return (key <= query) & (query - key <= left)

    return create_block_mask(visible, None, None, shape["seq_q"], shape["seq_kv"], device="cpu",
                             BLOCK_SIZE=side)


PEER = FlexPeer
