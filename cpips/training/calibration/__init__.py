"""Fit a metric to people's judgements: BAPPS triplets, MOS sets, or, where these are not at hand, other metrics' word."""
