"""ONNX Runtime: a model of one operator."""

import numpy as np
import onnxruntime
from onnx import helper

from peer import Call, Peer, repeat_heads

ATTENTION = "Attention"
ATTENTION_PACKED = "Attention, packed heads"
MULTI_HEAD = "MultiHeadAttention"
MULTI_HEAD_SPLIT = "MultiHeadAttention, split keys"
GROUP_QUERY = "GroupQueryAttention"
# One query a sequence, whose key and value the operator appends to what the cache holds already.
GROUP_QUERY_STEP = "GroupQueryAttention, past and present in one buffer"
MASKED_DECODER = "DecoderMaskedMultiHeadAttention"
MICROSOFT = "com.microsoft"


def pack(array):
    """[batch, heads, sequence, dim] as [batch, sequence, heads * dim]."""
    batch, heads, sequence, dim = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, sequence, heads * dim)


def unpack(array, shape):
    sizes = [shape[size] for size in ("batch", "seq_q", "q_heads", "head_dim")]
    return array.reshape(sizes).swapaxes(1, 2)


def grouped_inputs(shape, query, key, value):
    """The operator computes a causal step after an empty cache."""
    batch, heads, seq, dim = (shape[s] for s in ("batch", "kv_heads", "seq_kv", "head_dim"))
    cache = np.zeros((batch, heads, 0, dim), np.float32)
    return {"query": pack(query), "key": pack(key), "value": pack(value), "past_key": cache,
            "past_value": cache, "seqlens_k": np.full(batch, seq - 1, np.int32),
            "total_sequence_length": np.array([seq], np.int32)}


# Outputs that are bound to the memory of inputs.
SHARED = {GROUP_QUERY_STEP: {"present_key": "past_key", "present_value": "past_value"}}


def step_inputs(shape, query, key, value):
    """The last key and value are the step's, their place in the cache is empty."""
    batch, seq = shape["batch"], shape["seq_kv"]
    caches = {"past_key": key.copy(), "past_value": value.copy()}
    for cache in caches.values():
        cache[:, :, -1] = 0
    return {"query": pack(query), "key": pack(key[:, :, -1:]), "value": pack(value[:, :, -1:]),
            **caches, "seqlens_k": np.full(batch, seq - 1, np.int32),
            "total_sequence_length": np.array([seq], np.int32)}


def node(shape, way, query, key, value):
    """The operator, its domain and attributes, its inputs, and the shapes of its outputs."""
    causal, heads, kv_heads = int(shape["causal"]), shape["q_heads"], shape["kv_heads"]
    inputs = {"query": query, "key": key, "value": value}
    packed = {name: pack(array) for name, array in inputs.items()}
    counts = {"num_heads": heads, "kv_num_heads": kv_heads}
    outputs = {"out": query.shape if way == ATTENTION else packed["query"].shape}
    if way == ATTENTION:
        return "Attention", "", {"is_causal": causal}, inputs, outputs
    if way == ATTENTION_PACKED:
        attributes = {"is_causal": causal, "q_num_heads": heads, "kv_num_heads": kv_heads}
        return "Attention", "", attributes, packed, outputs
    if way in (GROUP_QUERY, GROUP_QUERY_STEP):
        cache = (shape["batch"], kv_heads, shape["seq_kv"], shape["head_dim"])
        outputs |= {"present_key": cache, "present_value": cache}
        make_inputs = step_inputs if way == GROUP_QUERY_STEP else grouped_inputs
        inputs = make_inputs(shape, query, key, value)
        return "GroupQueryAttention", MICROSOFT, counts, inputs, outputs
    key, value = repeat_heads(key, shape), repeat_heads(value, shape)
    if way == MASKED_DECODER:
        inputs = {"query": packed["query"], "key": key, "value": value}
        return MASKED_DECODER, MICROSOFT, {"num_heads": heads}, inputs, outputs
    if way == MULTI_HEAD:
        key, value = pack(key), pack(value)
    inputs = {"query": packed["query"], "key": key, "value": value}
    attributes = {"num_heads": heads, "unidirectional": causal}
    return MULTI_HEAD, MICROSOFT, attributes, inputs, outputs


def model(operator, domain, attributes, inputs, outputs):
    def describe(name, dtype, sizes):
        tensor_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, tensor_type, sizes)

    only = helper.make_node(operator, list(inputs), list(outputs), domain=domain, **attributes)
    graph = helper.make_graph(
        [only], "attention",
        [describe(name, array.dtype, array.shape) for name, array in inputs.items()],
        [describe(name, np.float32, sizes) for name, sizes in outputs.items()])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class OnnxRuntimePeer(Peer):
    name = "ONNX Runtime"

    def versions(self):
        return {"onnxruntime": onnxruntime.__version__}

    def ways(self, shape):
        ways = [ATTENTION, ATTENTION_PACKED, MULTI_HEAD, MULTI_HEAD_SPLIT]
        if shape["seq_q"] == 1:
            return ways + [GROUP_QUERY_STEP, MASKED_DECODER]
        grouped = shape["causal"] and shape["seq_q"] == shape["seq_kv"]
        return ways + [GROUP_QUERY] if grouped else ways

    def prepare(self, shape, way, query, key, value):
        operator, domain, attributes, inputs, outputs = node(shape, way, query, key, value)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model(operator, domain, attributes, inputs, outputs), options,
            providers=["CPUExecutionProvider"])
        # Inputs and outputs stay where they are, so that a run copies nothing.
        binding = session.io_binding()
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in inputs.items()}
        shared = SHARED.get(way, {})
        results = {name: values[shared[name]] if name in shared else
                   onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(sizes), np.float32)
                   for name, sizes in outputs.items()}
        for name, array in values.items():
            binding.bind_ortvalue_input(name, array)
        for name, array in results.items():
            binding.bind_ortvalue_output(name, array)

        def result():
            out = results["out"].numpy()
            return out if out.ndim == 4 else unpack(out, shape)

        return Call(lambda: session.run_with_iobinding(binding), result)


PEER = OnnxRuntimePeer
