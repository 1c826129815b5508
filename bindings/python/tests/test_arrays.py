"""Arrays of NumPy and of whatever else has DLPack or the buffer protocol."""

import array
import ctypes
import gc
import sys

import numpy as np
import pytest

import headwise
import reference

SHAPE = (2, 3, 5, 8)


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Capsule:
    """An array with DLPack alone, in the version that is asked for, or before all versions."""

    def __init__(self, wrapped, versioned=True, device=(1, 0)):
        self.wrapped, self.versioned, self.device = wrapped, versioned, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **keywords):
        if not self.versioned and keywords:
            raise TypeError("unexpected keyword")
        return self.wrapped.__dlpack__(**keywords)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-11), (np.float16, 2e-3)]
)
def test_numpy(dtype, tolerance):
    query, key, value = (random(*SHAPE, dtype=dtype, seed=n) for n in range(3))
    out = headwise.scaled_dot_product_attention(query, key, value)
    assert type(out) is np.ndarray
    assert out.dtype == dtype
    assert out.flags.writeable
    np.testing.assert_allclose(out, reference.attention(query, key, value)[0], atol=tolerance)


def test_numpy_layouts():
    kinds = [
        random(2, 5, 3, 8).transpose(0, 2, 1, 3),
        random(*SHAPE)[:, :, ::-1],
        random(*SHAPE)[..., ::-1],
        np.asfortranarray(random(*SHAPE)),
        np.broadcast_to(random(1, 1, 5, 8), SHAPE),
    ]
    unaligned = np.zeros(np.prod(SHAPE) * 4 + 1, dtype=np.uint8)[1:].view(np.float32)
    kinds.append(unaligned.reshape(SHAPE))
    kinds[-1][...] = random(*SHAPE)
    records = np.zeros(SHAPE, dtype=[("x", np.float32), ("y", np.uint8)])
    records["x"] = random(*SHAPE)
    kinds.append(records["x"])
    for query in kinds:
        for value in kinds:
            out = headwise.scaled_dot_product_attention(query, query, value)
            np.testing.assert_allclose(out, reference.attention(query, query, value)[0], atol=2e-5)


def test_read_only_inputs():
    query = random(*SHAPE)
    query.flags.writeable = False
    out = headwise.scaled_dot_product_attention(query, query, query)
    assert out.flags.writeable
    with pytest.raises(ValueError, match="out: a read-only array"):
        headwise.scaled_dot_product_attention(random(*SHAPE), query, query, out=query)


def test_buffers():
    numbers = random(*SHAPE)
    buffer = memoryview(array.array("f", numbers.ravel().tolist())).cast("B").cast("f", SHAPE)
    out = headwise.scaled_dot_product_attention(buffer, buffer, buffer)
    assert isinstance(out, headwise.Tensor)
    assert (out.shape, out.dtype, out.ndim) == (SHAPE, "float32", 4)
    right = headwise.scaled_dot_product_attention(numbers, numbers, numbers)
    assert np.array_equal(np.asarray(out), right)
    assert np.array_equal(np.from_dlpack(out), right)
    again = headwise.scaled_dot_product_attention(out, out, out)
    assert isinstance(again, headwise.Tensor)


@pytest.mark.parametrize("versioned", [True, False])
def test_capsules(versioned):
    numbers = random(*SHAPE)
    right = headwise.scaled_dot_product_attention(numbers, numbers, numbers)
    wrapped = Capsule(numbers, versioned)
    before = sys.getrefcount(numbers)
    out = headwise.scaled_dot_product_attention(wrapped, wrapped, wrapped)
    gc.collect()
    assert sys.getrefcount(numbers) == before, "a capsule's tensor was not given back"
    assert isinstance(out, headwise.Tensor)
    assert np.array_equal(np.from_dlpack(out), right)


def test_a_capsule_that_was_used():
    class Used(Capsule):
        capsule = None

        def __dlpack__(self, **keywords):
            self.capsule = self.capsule or super().__dlpack__(**keywords)
            return self.capsule

    used = Used(random(*SHAPE))
    headwise.scaled_dot_product_attention(used, random(*SHAPE), random(*SHAPE))
    with pytest.raises(TypeError, match="query: a capsule that was used"):
        headwise.scaled_dot_product_attention(used, random(*SHAPE), random(*SHAPE))


def test_what_the_tensor_exports():
    numbers = random(*SHAPE)
    buffer = memoryview(numbers.tobytes()).cast("f", SHAPE)
    out = headwise.scaled_dot_product_attention(buffer, buffer, buffer)
    assert out.__dlpack_device__() == (1, 0)
    assert "dltensor_versioned" in repr(out.__dlpack__(max_version=(1, 1)))
    assert '"dltensor"' in repr(out.__dlpack__())

    class Copied:
        """What a consumer gets that asks for a copy, which NumPy before 2.1 cannot."""

        __dlpack_device__ = out.__dlpack_device__

        def __dlpack__(self, **keywords):
            return out.__dlpack__(**{**keywords, "copy": True, "dl_device": None})

    copy = np.from_dlpack(Copied())
    shared = np.from_dlpack(out)
    np.asarray(out)[...] = 7
    assert (shared == 7).all()
    assert not (copy == 7).any()
    with pytest.raises(BufferError, match="cuda:1"):
        out.__dlpack__(dl_device=(2, 1))
    with pytest.raises(ValueError, match="stream"):
        out.__dlpack__(stream=1)
    assert "dltensor" in repr(out.__dlpack__(stream=-1))
    bytes_ = bytes(memoryview(out))
    assert len(bytes_) == 4 * np.prod(SHAPE)


def test_out_of_numpy():
    query, key, value = (random(*SHAPE, seed=n) for n in range(3))
    right = headwise.scaled_dot_product_attention(query, key, value)
    for out in (np.empty(SHAPE, np.float32), np.empty((2, 5, 3, 8), np.float32).swapaxes(1, 2)):
        assert headwise.scaled_dot_product_attention(query, key, value, out=out) is out
        assert np.array_equal(out, right)


def test_what_is_asked_of_buffers():
    """By ctypes, as the class for it comes with Python 3.12."""
    numbers = random(2, 5, 3, 8)
    buffer = memoryview(numbers.tobytes()).cast("f", numbers.shape)
    by_rows = headwise.scaled_dot_product_attention(buffer, buffer, buffer)
    swapped = headwise.attention(buffer, buffer, buffer, layout="bshd").out
    simple, strides, rows, columns, either = 0, 0x18, 0x38, 0x58, 0x98
    assert all(exports(by_rows, flags) for flags in (simple, strides, rows, either))
    assert not exports(by_rows, columns)
    assert exports(swapped, simple)
    assert np.asarray(swapped).shape == (2, 5, 3, 8)
    flat = memoryview(random(1, 8).tobytes()).cast("f", (1, 8))
    line = headwise.scaled_dot_product_attention(flat, flat, flat)
    assert all(exports(line, flags) for flags in (simple, strides, rows, columns, either))
    heads = memoryview(random(2, 3, 5, 8).tobytes()).cast("f", (2, 3, 5, 8))
    turned = np.asarray(heads).swapaxes(1, 2)

    class Wrapped:
        """No class of NumPy's, whose heads lie within its positions."""

        __dlpack_device__, __dlpack__ = turned.__dlpack_device__, turned.__dlpack__

    inner = headwise.scaled_dot_product_attention(Wrapped(), Wrapped(), Wrapped())
    assert exports(inner, strides)
    assert not any(exports(inner, flags) for flags in (simple, rows, columns, either))


def exports(array, flags):
    """Whether an array gives the buffer that flags ask for."""
    view = (ctypes.c_char * 256)()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
    release.argtypes = [ctypes.c_void_p]
    try:
        get(array, view, flags)
    except BufferError:
        return False
    release(view)
    return True


def test_pairs_of_numbers():
    x = random(1, 1, 2, 8)
    by_list = headwise.attention(x, x, x, documents=[0, 1], return_weights=True)
    for pair in [(0, 1), (np.int64(0), np.int64(1)), (np.array([0, 1]), [0, 1])]:
        by_pair = headwise.attention(x, x, x, documents=pair, return_weights=True)
        assert np.array_equal(by_pair.weights, by_list.weights)
    one = np.array([3])
    headwise.attention(x[:, :, :1], x[:, :, :1], x[:, :, :1], documents=(one, one))
