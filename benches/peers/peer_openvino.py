"""OpenVINO: a model of one operator."""

import openvino
from openvino import opset13

from peer import Call, Peer, repeat_heads

STATIC = "static sizes"
DYNAMIC = "dynamic sizes"


class OpenVinoPeer(Peer):
    name = "OpenVINO"

    def versions(self):
        return {"openvino": openvino.__version__.split("-")[0]}

    def ways(self, shape):
        return [STATIC, DYNAMIC]

    def prepare(self, shape, way, query, key, value):
        causal = shape["causal"]
        if causal and shape["seq_q"] != shape["seq_kv"]:
            raise ValueError("OpenVINO aligns a causal mask with the first key")
        arrays = [query, repeat_heads(key, shape), repeat_heads(value, shape)]

        def parameter(array):
            batch, heads, sequence, dim = array.shape
            sizes = [-1, heads, -1, dim] if way == DYNAMIC else [batch, heads, sequence, dim]
            return opset13.parameter(sizes, openvino.Type.f32)

        parameters = [parameter(array) for array in arrays]
        attention = opset13.scaled_dot_product_attention(*parameters, causal=causal)
        compiled = openvino.Core().compile_model(openvino.Model([attention], parameters), "CPU", {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads,
        })
        request = compiled.create_infer_request()
        tensors = [openvino.Tensor(array) for array in arrays]
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)
        return Call(request.infer, lambda: request.get_output_tensor(0).data)


PEER = OpenVinoPeer
