"""The experiments of nablanets: problems, baselines, data sets, pictures, and pages about them.

They use the library and may be removed: nothing in `nablanets` imports from here. They join its command line and its
model files by entry points.
"""

__version__ = "0.2.0"
