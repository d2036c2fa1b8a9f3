"""ONNX files."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nablanets.errors import ExportError
from nablanets.interop.tracing import Both, freeze, trace
from nablanets.maps import GradientMap
from nablanets.serialization import atomic_path


def write(net: GradientMap, x: Tensor, path: Path) -> tuple[Path, ...]:
    """Write one model with the outputs gradient and potential."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX files need {' and '.join(missing)}: pip install 'nablanets[onnx]'.")
    module = _Lowered(freeze(trace(Both(net), x))).eval()
    with atomic_path(path) as temporary:
        _convert(module, x, temporary, type(net).__name__)
    return (path,)


def _convert(module: nn.Module, x: Tensor, path: Path, owner: str) -> None:
    try:
        with _quiet("torch.onnx"):
            torch.onnx.export(
                module,
                (x,),
                path,
                input_names=["x"],
                output_names=["gradient", "potential"],
                dynamic_shapes={"x": {0: torch.export.Dim("n")}},
                dynamo=True,
                optimize=False,  # it drops factors near one and terms near zero, which is too much for float64
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ExportError(f"torch.onnx cannot convert this {owner}: {cause[:300]}. Try 'torch' or 'numpy'.") from error


def evaluate(files: tuple[Path, ...], x: Tensor) -> tuple[Tensor, Tensor] | str:
    """f(x) and F(x) by onnxruntime, or why it cannot."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install onnxruntime)."
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
        gradient, potential = session.run(["gradient", "potential"], {"x": x.numpy()})
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        return f"onnxruntime {onnxruntime.__version__} lacks an operation in {x.dtype} ({error}); export net.float()."
    return torch.from_numpy(gradient), torch.from_numpy(potential)


def _softplus(z: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.relu(z) + torch.log1p(torch.exp(-beta * z.abs())) / beta


def _asinh(z: Tensor) -> Tensor:
    return z.sign() * torch.log(z.abs() + torch.sqrt(z.square() + 1))


def _full_like(z: Tensor, value: float, **_: object) -> Tensor:
    return torch.ones_like(z) * z.new_tensor(value)


_aten = torch.ops.aten
#: onnxruntime knows the first two in float32 only; the converter rounds the number of the third to float32.
_REWRITTEN: dict[Any, Callable[..., Tensor]] = {
    _aten.softplus.default: _softplus,
    _aten.asinh.default: _asinh,
    _aten.full_like.default: _full_like,
}
#: Operations of a tensor and numbers, which the converter rounds to float32, that can be of tensors only.
_WITH_NUMBERS = {
    getattr(_aten, name)
    for name in ("add", "clamp", "div", "eq", "ge", "gt", "le", "lt", "mul", "ne", "pow", "rsub", "sub", "where")
}


class _Lowered(nn.Module):
    """A graph in the operations, and with the numbers, that survive the way to onnxruntime."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.frozen = graph

    def forward(self, x: Tensor) -> Any:
        return _Rewriting(self.frozen).run(x)


class _Rewriting(fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        packet = getattr(target, "overloadpacket", None)
        if packet in _WITH_NUMBERS and any(map(_is_rounded, args)):
            like = next(a for a in args if isinstance(a, Tensor) and a.is_floating_point())
            target, args = packet, tuple(like.new_tensor(a) if _is_rounded(a) else a for a in args)
        return super().call_function(_REWRITTEN.get(target, target), args, kwargs)


def _is_rounded(value: object) -> bool:
    """Whether a number is another one in float32."""
    return isinstance(value, float) and float(np.float32(value)) != value


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Only errors from a logger: torch.onnx warns about torchvision, which has no part in this."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
