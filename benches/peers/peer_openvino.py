"""OpenVINO: a model of one operator, or of a step with its cache."""

import openvino
from openvino import opset13

import openvino_state
from peer import Call, Peer, repeat_heads

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
        ways = [STATIC, DYNAMIC]
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
            steps = openvino_state.Steps(self.compile(model), query, key, value)
            return Call(steps.run, steps.result, steps.ready)
        arrays = [query, key, value]

        def parameter(array):
            batch, heads, sequence, dim = array.shape
            sizes = [-1, heads, -1, dim] if way == DYNAMIC else [batch, heads, sequence, dim]
            return opset13.parameter(sizes, openvino.Type.f32)

        parameters = [parameter(array) for array in arrays]
        attention = opset13.scaled_dot_product_attention(*parameters, causal=causal)
        compiled = self.compile(openvino.Model([attention], parameters))
        request = compiled.create_infer_request()
        tensors = [openvino.Tensor(array) for array in arrays]
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)
        return Call(request.infer, lambda: request.get_output_tensor(0).data)

    def compile(self, model):
        return openvino.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads,
        })


PEER = OpenVinoPeer
