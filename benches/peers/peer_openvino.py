"""OpenVINO: a model of one operator, or of a step with its cache."""

import numpy as np
import openvino
from openvino import opset13

import dtypes
import openvino_state
from peer import Call, Peer, repeat_heads

# What operands are, what is computed in, and what a cache holds.
TYPES = {
    "f32": (openvino.Type.f32, "f32", "f32"),
    "f16": (openvino.Type.f16, "f16", "f16"),
    "bf16": (openvino.Type.bf16, "bf16", "bf16"),
    # The plugin quantises the cache; queries and results stay.
    "int8": (openvino.Type.f32, "f32", "u8"),
}

STATIC = "static sizes"
DYNAMIC = "dynamic sizes"
# One query a sequence, whose key and value go into a cache that is the model's state.
STATEFUL = "state as cache"
STATEFUL_REPEATED = "state as cache, repeated heads"


class OpenVinoPeer(Peer):
    name = "OpenVINO"

    def versions(self):
        return {"openvino": openvino.__version__.split("-")[0]}

    def ways(self, shape):
        # Of integers there is a cache alone.
        ways = [STATIC, DYNAMIC] if dtypes.dtype(shape) != "int8" else []
        if shape["seq_q"] == 1:
            ways.append(STATEFUL)
            if shape["q_heads"] > shape["kv_heads"]:
                ways.append(STATEFUL_REPEATED)
        return ways

    def prepare(self, shape, way, query, key, value):
        causal = shape["causal"]
        if causal and shape["seq_q"] != shape["seq_kv"]:
            raise ValueError("OpenVINO aligns a causal mask with the first key")
        if way != STATEFUL:
            key, value = repeat_heads(key, shape), repeat_heads(value, shape)
        if way in (STATEFUL, STATEFUL_REPEATED):
            model = openvino_state.model(query.shape[1], key.shape[1], shape["head_dim"])
            compiled = self.compile(model, dtypes.dtype(shape))
            steps = openvino_state.Steps(compiled, query, key, value)
            return Call(steps.run, steps.result, steps.ready)
        arrays = [query, key, value]

        def parameter(array):
            batch, heads, sequence, dim = array.shape
            sizes = [-1, heads, -1, dim] if way == DYNAMIC else [batch, heads, sequence, dim]
            return opset13.parameter(sizes, TYPES[dtypes.dtype(shape)][0])

        parameters = [parameter(array) for array in arrays]
        attention = opset13.scaled_dot_product_attention(*parameters, causal=causal)
        # The result as floats, so that it can be read.
        result = opset13.convert(attention, openvino.Type.f32)
        compiled = self.compile(openvino.Model([result], parameters), dtypes.dtype(shape))
        request = compiled.create_infer_request()
        operands = [operand(array, dtypes.dtype(shape)) for array in arrays]
        for index, array in enumerate(operands):
            tensor = openvino.Tensor(array, array.shape, TYPES[dtypes.dtype(shape)][0])
            request.set_input_tensor(index, tensor)
        # A tensor that names its type is a view, and keeps no array alive.
        return Call(lambda kept=operands: request.infer(),
                    lambda: request.get_output_tensor(0).data)

    def compile(self, model, name):
        _, computed, cached = TYPES[name]
        return openvino.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": computed,
            "KV_CACHE_PRECISION": cached,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads,
        })


def operand(array, name):
    """An array of numbers of a type as it lies in memory."""
    if name == "bf16":
        return dtypes.bfloat16_bits(array)
    return np.ascontiguousarray(array, np.float16 if name == "f16" else np.float32)


PEER = OpenVinoPeer
