"""Machinery of the studies: what an experiment is, run folders, pages, comparisons and costs."""
