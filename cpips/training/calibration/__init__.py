"""Fit a metric to human ratings (BAPPS triplets, MOS sets) or, where these are not available, to other metrics."""
