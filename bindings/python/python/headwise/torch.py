"""Whole PyTorch models on headwise.

``patch()`` replaces ``torch.nn.functional.scaled_dot_product_attention``,
``register_transformers()`` makes ``attn_implementation="headwise"`` known to Hugging Face's
transformers. Whatever headwise does not do goes to PyTorch as before.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils._device import DeviceContext

from headwise import _headwise

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Patch", "patch", "register_transformers", "unpatch"]

_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


class Patch:
    """That the function is replaced; what ``patch()`` gives. As a context manager it ends with the
    block. ``calls`` counts what headwise computed, ``fallbacks`` why PyTorch computed the rest."""

    def __init__(self) -> None:
        self.calls = 0
        self.fallbacks: Counter[str] = Counter()
        self._original = F.scaled_dot_product_attention

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Puts back the function that was there before. Does nothing the second time."""
        if self not in _patches:
            return
        _patches.remove(self)
        if getattr(F.scaled_dot_product_attention, "_headwise_patch", None) is self:
            F.scaled_dot_product_attention = self._original
            return
        # A later patch goes on, and must not put this one back.
        for later in _patches:
            if getattr(later._original, "_headwise_patch", None) is self:
                later._original = self._original
                return
        warnings.warn(
            "somebody else has replaced torch.nn.functional.scaled_dot_product_attention since: "
            "headwise leaves it as it is",
            RuntimeWarning,
            stacklevel=3,
        )


_patches: list[Patch] = []


def patch() -> Patch:
    """From now on ``torch.nn.functional.scaled_dot_product_attention`` is headwise's, until
    ``unpatch()`` or the end of a ``with`` block. Names that were imported before stay."""
    this = Patch()

    def scaled_dot_product_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        arguments = (query, key, value, attn_mask, dropout_p, is_causal)
        reason = _reason_for_torch(query, key, value, attn_mask, dropout_p)
        if reason is None and _is_watched():
            reason = "function mode"
        if reason is None:
            try:
                out = _headwise.scaled_dot_product_attention(
                    *arguments, scale=scale, enable_gqa=enable_gqa
                )
            except (TypeError, ValueError):
                # PyTorch computes it, or says what is wrong.
                reason = "arguments"
            else:
                this.calls += 1
                return out
        if reason != "compiling":
            this.fallbacks[reason] += 1
        return this._original(*arguments, scale=scale, enable_gqa=enable_gqa)

    scaled_dot_product_attention._headwise_patch = this  # type: ignore[attr-defined]
    _let_script(scaled_dot_product_attention)
    F.scaled_dot_product_attention = scaled_dot_product_attention
    _patches.append(this)
    return this


def unpatch() -> None:
    """Ends all patches."""
    for this in reversed(_patches[:]):
        this.end()


def _reason_for_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
) -> str | None:
    """Why PyTorch must compute a call, if it must."""
    if torch.compiler.is_compiling():
        return "compiling"
    if dropout != 0.0:
        return "dropout"
    tensors = (query, key, value) if mask is None else (query, key, value, mask)
    if not all(type(tensor) in _PLAIN for tensor in tensors):
        return "tensor subclass"
    if not all(tensor.device.type == "cpu" for tensor in tensors):
        return "device"
    if any(tensor.is_nested or tensor.layout != torch.strided for tensor in tensors):
        return "nested or sparse"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients"
    if query.dtype not in _DTYPES:
        return "dtype"
    if torch.is_autocast_enabled("cpu") and query.dtype != torch.get_autocast_dtype("cpu"):
        return "autocast"
    return "transform" if _is_transformed() else None


def _let_script(function: Any) -> None:
    """Makes ``torch.jit.script`` take a function for PyTorch's own, which it would be without the
    patch: it cannot compile this one."""
    builtins = getattr(torch.jit, "_builtins", None)
    register = getattr(builtins, "_register_builtin", None)
    table = getattr(builtins, "_get_builtin_table", None)
    if register is None or table is None:
        return
    register(function, "aten::scaled_dot_product_attention")
    # It is known by its address, which another function may have afterwards.
    weakref.finalize(function, table().pop, id(function), None).atexit = False


def _is_watched() -> bool:
    """Whether a mode sees every call of PyTorch's functions. That of a default device leaves this
    one as it is."""
    modes = range(torch._C._len_torch_function_stack())
    return any(type(torch._C._get_function_stack_at(n)) is not DeviceContext for n in modes)


def _is_transformed() -> bool:
    """Whether somebody watches every operator: tracing, functorch, forward differentiation."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def register_transformers(name: str = "headwise") -> str:
    """Makes headwise known to Hugging Face's transformers: ``attn_implementation=name`` of
    ``from_pretrained``, or ``model.set_attn_implementation(name)``. Returns the name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, _transformers_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def _transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls: `[batch, heads, seq, dim]` in, `[batch, seq, heads, dim]` out."""
    if _reason_for_torch(query, key, value, attention_mask, dropout) is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and attention_mask is None and query.shape[2] > 1
        try:
            return _transformers_headwise(
                query,
                key,
                value,
                attention_mask,
                position_bias,
                scale=scaling,
                causal="top_left" if causal else None,
                softcap=softcap,
                sinks=s_aux,
                return_weights=bool(kwargs.get("output_attentions")),
            )
        except (TypeError, ValueError):
            # PyTorch computes it, or says what is wrong, where it has the terms.
            if softcap is not None or s_aux is not None:
                raise
    return _transformers_sdpa(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        position_bias=position_bias,
        softcap=softcap,
        s_aux=s_aux,
        **kwargs,
    )


def _transformers_headwise(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same by headwise, to memory that lies as the next projection reads it."""
    if mask is not None and mask.dtype != torch.bool:
        bias = mask if bias is None else mask + bias
        mask = None
    (batch,) = torch.broadcast_shapes(query.shape[:1], key.shape[:1], value.shape[:1])
    _, heads, seq, _ = query.shape
    out = query.new_empty((batch, seq, heads, value.shape[-1]))
    result = _headwise.attention(
        query, key, value, out=out.transpose(1, 2), mask=mask, bias=bias, **options
    )
    return out, result.weights


def _transformers_sdpa(
    *arguments: Any, softcap: float | None, s_aux: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The same by PyTorch, which has neither a softcap nor sinks."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is not None or s_aux is not None:
        raise RuntimeError(
            "softcap, sinks: with gradients, dropout or outside the CPU, expected "
            'attn_implementation="eager": headwise does not compute those, PyTorch not these'
        )
    return sdpa_attention_forward(*arguments, **kwargs)
