"""bfloat16 on a processor without it: exact products of rounded numbers, rounded again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_is_rounding: ContextVar[bool] = ContextVar("is_rounding", default=False)

# What autocast runs in bfloat16, of that what networks here call.
PRODUCTS = frozenset(
    function
    for name in ("conv3d", "conv_transpose3d", "linear", "matmul", "bmm", "einsum")
    for function in (getattr(torch, name, None), getattr(F, name, None))
    if function is not None
) | {Tensor.matmul, Tensor.__matmul__, Tensor.bmm}


class RoundedProducts(TorchFunctionMode):
    """Compute convolutions and matrix products in float32, of inputs rounded to bfloat16.

    The result is rounded to bfloat16 too, and so are, by autograd, the gradients of the inputs
    and of the weights: what a processor with bfloat16 does, which multiplies exactly and sums in
    float32, up to the order of the sum. Without it, torch's own bfloat16 takes forty times as
    long as float32 (oneDNN's reference code).
    """

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        if (
            function not in PRODUCTS
            or not torch.is_autocast_enabled("cpu")  # switched off for a part
            or any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in values)
        ):
            return function(*args, **kwargs)
        rounded = [_rounded(value) for value in args]
        named = {name: _rounded(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return function(*rounded, **named).bfloat16()


@contextmanager
def rounded_autocast() -> Iterator[None]:
    """Run as under ``torch.autocast("cpu", torch.bfloat16)``, on a processor without bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16), RoundedProducts():
        token = _is_rounding.set(True)
        try:
            yield
        finally:
            _is_rounding.reset(token)


def rounding_again() -> AbstractContextManager[None]:
    """Return what a later recomputation has to run in, to round where the caller does now."""
    return rounded_autocast() if _is_rounding.get() else nullcontext()


def _rounded(value: Any) -> Any:
    """Round a tensor of floating point numbers to bfloat16's, as float32."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.bfloat16().float()
