"""PyTorch."""

import torch
import torch.nn.functional as F

import dtypes
from peer import Call, Peer, repeat_heads

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TorchPeer(Peer):
    name = "PyTorch"

    def __init__(self, threads):
        super().__init__(threads)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def versions(self):
        return {"torch": torch.__version__}

    def ways(self, shape):
        grouped = shape["q_heads"] != shape["kv_heads"]
        return ["enable_gqa", "repeated heads"] if grouped else ["scaled_dot_product_attention"]

    def prepare(self, shape, way, query, key, value):
        causal = shape["causal"]
        if causal and shape["seq_q"] != shape["seq_kv"]:
            raise ValueError("PyTorch aligns a causal mask with the first key")
        if way == "repeated heads":
            key, value = repeat_heads(key, shape), repeat_heads(value, shape)
        dtype = TYPES.get(dtypes.dtype(shape))
        if dtype is None:
            raise ValueError(f"PyTorch has no attention in {dtypes.dtype(shape)}")
        tensors = [torch.from_numpy(x).clone().to(dtype) for x in (query, key, value)]
        out = None
        # Looked up here: it may be patched.
        attention = F.scaled_dot_product_attention

        def run():
            nonlocal out
            out = attention(*tensors, is_causal=causal, enable_gqa=way == "enable_gqa")

        return Call(run, lambda: out.float().numpy())


PEER = TorchPeer
