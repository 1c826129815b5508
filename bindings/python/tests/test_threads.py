"""Threads of Python beside ours, and forked processes."""

import os
import threading

import numpy as np
import pytest

import headwise


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_other_threads_run_during_a_call():
    x = random(1, 8, 2048, 64)

    def attempt():
        started, done = threading.Event(), threading.Event()

        def call():
            started.set()
            headwise.scaled_dot_product_attention(x, x, x)
            done.set()

        thread = threading.Thread(target=call)
        thread.start()
        started.wait()
        # Were Python locked during the call, this thread would go on when it is done.
        turns = 0
        while not done.is_set():
            done.wait(1e-4)
            turns += 1
        thread.join()
        return turns > 3

    assert any(attempt() for _ in range(10))


def test_calls_at_once():
    inputs = [random(1, 4, 200, 32, seed=n) for n in range(8)]
    right = [headwise.scaled_dot_product_attention(x, x, x) for x in inputs]
    results = [None] * len(inputs)

    def call(n):
        for _ in range(5):
            results[n] = headwise.scaled_dot_product_attention(*3 * [inputs[n]])

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(inputs))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(a, b) for a, b in zip(right, results, strict=True))


def test_a_cache_in_use_is_not_changed():
    cache = headwise.KvCache.contiguous(batch=1, capacity=20_000, kv_heads=8, head_dim=64)
    key = random(1, 8, 16_000, 64)
    cache.append(key, key)
    query = random(1, 8, 512, 64)
    started, refused = threading.Event(), []

    def call():
        started.set()
        cache.attend(query)

    thread = threading.Thread(target=call)
    thread.start()
    started.wait()
    while thread.is_alive():
        try:
            cache.truncate(0, 16_000)
        except RuntimeError as error:
            refused.append(str(error))
    assert all("borrowed" in message.lower() for message in refused)


def test_number_of_threads():
    threads = headwise.get_num_threads()
    assert threads >= 1
    x = random(1, 8, 256, 64)
    right = headwise.scaled_dot_product_attention(x, x, x)
    try:
        headwise.set_num_threads(1)
        assert headwise.get_num_threads() == 1
        assert np.array_equal(headwise.scaled_dot_product_attention(x, x, x), right)
    finally:
        headwise.set_num_threads(threads)
    with pytest.raises(ValueError, match="threads: 0"):
        headwise.set_num_threads(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    x = random(1, 8, 512, 64)
    right = headwise.scaled_dot_product_attention(x, x, x)
    child = os.fork()
    if child == 0:
        same = np.array_equal(headwise.scaled_dot_product_attention(x, x, x), right)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
