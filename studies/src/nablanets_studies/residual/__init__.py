"""Gradient residuals in comparisons: the arms, and the theory that the studies test."""
