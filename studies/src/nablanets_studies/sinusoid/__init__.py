"""The sinusoid studies of "Gradient Residual Connections"."""
