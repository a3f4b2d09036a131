"""Metrics by what one writes on the command line; see :mod:`cpips.custom`."""

from cpips.custom import UserMetric, create_metric

__all__ = ["UserMetric", "create_metric"]
