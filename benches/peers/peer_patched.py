"""PyTorch's call on headwise: what a model gets that is patched, Python's part included."""

import headwise
import headwise.torch

from peer_torch import TorchPeer


class PatchedPeer(TorchPeer):
    name = "patched PyTorch"

    def __init__(self, threads):
        super().__init__(threads)
        headwise.set_num_threads(threads)
        self.patch = headwise.torch.patch()

    def versions(self):
        return {"headwise": headwise.__version__}

    def prepare(self, shape, way, query, key, value):
        call = super().prepare(shape, way, query, key, value)

        def result():
            # What headwise does not do PyTorch computes: that is not what is measured here.
            if self.patch.fallbacks:
                raise ValueError(f"left to PyTorch: {dict(self.patch.fallbacks)}")
            return call.result()

        return call._replace(result=result)


PEER = PatchedPeer
