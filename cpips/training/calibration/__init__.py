"""Fit a metric to people's judgments: BAPPS triplets, MOS sets, or, where these are not available, other metrics' word."""
