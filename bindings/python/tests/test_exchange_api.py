"""Arrays by DLPack's table of C functions, made here in ctypes."""

import ctypes

import numpy as np
import pytest

import headwise

SHAPE = (1, 2, 4, 8)
READ_ONLY = 1


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class Table(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_of_object", ctypes.c_void_p),
        ("object_of_managed", ctypes.c_void_p),
        ("tensor_of_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    ]


def tensor_of(array):
    shape = array.numbers.ctypes.shape_as(ctypes.c_int64)
    array.kept = shape
    address = ctypes.cast(shape, ctypes.c_void_p)
    data = array.numbers.ctypes.data
    return Tensor(data, (1, 0), array.numbers.ndim, 2, 32, 1, address, None, 0)


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor))
def tensor_of_object(array, to):
    to[0] = tensor_of(array)
    return 0


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
def managed_of_object(array, to):
    array.managed = Managed((1, 1), None, None, array.flags, tensor_of(array))
    to[0] = ctypes.addressof(array.managed)
    return 0


def capsule_of(table):
    new = ctypes.pythonapi.PyCapsule_New
    new.argtypes, new.restype = (
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        ctypes.py_object,
    )
    return new(ctypes.addressof(table), b"dlpack_exchange_api", None)


def address(function):
    return ctypes.cast(function, ctypes.c_void_p)


TABLE = Table((1, 3), None, None, address(managed_of_object), None, address(tensor_of_object), None)


class Array:
    __dlpack_c_exchange_api__ = capsule_of(TABLE)

    def __init__(self, numbers, flags=0):
        self.numbers, self.flags = numbers, flags


def random(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def test_an_output():
    query, out = random(0), np.zeros(SHAPE, np.float32)
    wrapped = Array(out)
    given = headwise.scaled_dot_product_attention(Array(query), query, query, out=wrapped)
    assert given is wrapped
    assert np.array_equal(out, headwise.scaled_dot_product_attention(query, query, query))


def test_an_output_that_is_flagged_read_only():
    query, out = random(0), np.zeros(SHAPE, np.float32)
    with pytest.raises(ValueError, match="out: a read-only array"):
        headwise.scaled_dot_product_attention(query, query, query, out=Array(out, READ_ONLY))
    assert not out.any()
