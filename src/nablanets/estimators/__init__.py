"""scikit-learn's interface: regressors of gradient fields, of convex functions and of monotone functions.

They need the extra ``sklearn``: ``pip install 'nablanets[sklearn]'``.
"""

from nablanets.extras import needed

needed("sklearn", extra="sklearn", purpose="Estimators")

from nablanets.estimators.gradients import GradientFieldRegressor  # noqa: E402
from nablanets.estimators.values import ConvexRegressor, MonotoneRegressor  # noqa: E402

__all__ = ["ConvexRegressor", "GradientFieldRegressor", "MonotoneRegressor"]
