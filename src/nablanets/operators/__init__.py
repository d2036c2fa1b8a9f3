"""Symmetric linear operators: the Jacobians of gradient maps, as sums of structured terms instead of arrays."""

from nablanets.operators.base import SignedLogdet, Solved, SumOperator, SymmetricOperator
from nablanets.operators.lanczos import LogdetEstimate
from nablanets.operators.structured import GramTerm, StructuredOperator
from nablanets.operators.unstructured import CongruenceOperator, HessianOperator, InverseOperator

__all__ = [
    "CongruenceOperator",
    "GramTerm",
    "HessianOperator",
    "InverseOperator",
    "LogdetEstimate",
    "SignedLogdet",
    "Solved",
    "StructuredOperator",
    "SumOperator",
    "SymmetricOperator",
]
