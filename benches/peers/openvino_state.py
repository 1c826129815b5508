"""OpenVINO's attention over a cache that is the model's state, as the language models exported for
it have it: each call appends a key and a value. Its CPU plugin makes one operation of the whole."""

import numpy as np
import openvino
from openvino import opset13

# How many keys, at least, and which share of them a cache's length may differ by from the shape's:
# going back takes time, if none that is measured.
LEAST_REACH = 16
REACH = 1 / 128


def model(q_heads, kv_heads, dim):
    """Attention of new tokens to those before and to themselves, in sequences that `beam_idx`
    chooses among those before; query heads share the cache's by broadcasting."""
    def parameter(heads):
        return opset13.parameter([-1, heads, -1, dim], openvino.Type.f32)

    new = {"key": parameter(kv_heads), "value": parameter(kv_heads)}
    query, beam_idx = parameter(q_heads), opset13.parameter([-1], openvino.Type.i32)
    caches = {name: appended(name, tokens, beam_idx, kv_heads, dim)
              for name, tokens in new.items()}
    key, value = (by_query_head(cache, q_heads, kv_heads, dim) for cache in caches.values())
    out = opset13.scaled_dot_product_attention(query, key, value)
    assigns = [opset13.assign(cache, name) for name, cache in caches.items()]
    return openvino.Model([opset13.result(out)], assigns, [query, *new.values(), beam_idx])


def appended(name, tokens, beam_idx, heads, dim):
    """The tokens of the state of that name, followed by new ones."""
    nothing = opset13.constant(np.zeros((1, heads, 0, dim), np.float32))
    past = opset13.read_value(nothing, name, openvino.Type.f32, [-1, heads, -1, dim])
    past = opset13.gather(past, beam_idx, opset13.constant(np.int64(0)))
    return opset13.concat([past, tokens], 2)


def by_query_head(cache, q_heads, kv_heads, dim):
    """The cache with a head for each query head, by the operations that the plugin looks for."""
    if q_heads == kv_heads:
        return cache
    apart = opset13.unsqueeze(cache, opset13.constant(np.int64(2)))
    repeats = opset13.constant(np.array([1, 1, q_heads // kv_heads, 1, 1]))
    repeated = opset13.broadcast(apart, repeats, broadcast_spec="BIDIRECTIONAL")
    return opset13.reshape(repeated, opset13.constant(np.array([0, q_heads, -1, dim])), True)


class Steps:
    """Steps of decoding, each one key longer, at lengths as far below as above that of a shape."""

    def __init__(self, compiled, query, key, value):
        self.request = compiled.create_infer_request()
        self.arrays = {"key": key, "value": value}
        self.seq_kv = key.shape[2]
        last = [np.ascontiguousarray(array[:, :, -1:]) for array in (key, value)]
        # The request keeps no array alive.
        self.inputs = [openvino.Tensor(array) for array in
                       (query, *last, np.arange(len(query), dtype=np.int32))]
        for index, tensor in enumerate(self.inputs):
            self.request.set_input_tensor(index, tensor)
        # The first step has the shape's length, so that its output can be checked.
        self.load(self.seq_kv - 1)

    def load(self, length):
        """Makes the state the first `length` keys and values."""
        for state in self.request.query_state():
            rows = np.ascontiguousarray(self.arrays[state.name][:, :, :length])
            state.state = openvino.Tensor(rows)
        self.length = length

    def run(self):
        self.request.infer()
        self.length += 1

    def ready(self, runs):
        """Goes back to a shorter cache if `runs` steps would reach too far."""
        reach = max(runs // 2, LEAST_REACH, int(self.seq_kv * REACH))
        if self.length + runs > self.seq_kv + reach:
            # The step after a load takes memory for more.
            self.load(self.seq_kv - reach - 2)
            self.run()

    def result(self):
        return self.request.get_output_tensor(0).data
