"""How operators show themselves, and become arrays of NumPy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

# NumPy has no type for these.
_WITHOUT_NUMPY = (torch.bfloat16,)


class Displayed:
    """What ``repr`` and ``np.asarray`` say of an operator."""

    positive_semidefinite: bool
    #: NumPy leaves products such as ``np.float64(2) * J`` to the operator, instead of making an array of it.
    __array_ufunc__: ClassVar[None] = None

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of ``dense()``."""

    @property
    @abstractmethod
    def reference(self) -> Tensor:
        """A tensor of the operator's dtype, on its device."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrices as an array."""

    def __repr__(self) -> str:
        facts = [f"shape={tuple(self.shape)}", f"dtype={self.reference.dtype}"]
        if self.reference.device.type != "cpu":
            facts.append(f"device={str(self.reference.device)!r}")
        if self.positive_semidefinite:
            facts.append("positive_semidefinite=True")
        return f"{type(self).__name__}({', '.join(facts)})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """``dense()`` as an array: without derivatives, in main memory, and float32 where it is bfloat16.

        A tensor that has derivatives refuses to become an array, since they would be lost. Jacobians of networks
        nearly always have some, so that an operator would refuse nearly always; it detaches instead.

        Raises:
            ValueError: ``copy=False``, since a dense form is always made anew.
        """
        if copy is False:
            raise ValueError("an operator cannot become an array without a copy: leave copy=False out.")
        dense = self.dense().detach().cpu()
        if dense.dtype in _WITHOUT_NUMPY:
            dense = dense.float()
        return np.array(dense.numpy(), dtype=dtype)
