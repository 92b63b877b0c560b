"""Compute statistics: pure arithmetic on numpy arrays, each function with the source of its formula."""
