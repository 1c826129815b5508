"""The examples of the guide run."""

import pathlib
import re

import pytest

pytest.importorskip("torch")

ROOT = pathlib.Path(__file__).parents[3]
PAGES = [ROOT / "docs" / "python.md", ROOT / "README.md", ROOT / "bindings/python/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    try:
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    finally:
        import headwise.torch

        headwise.torch.unpatch()
