"""Traces and rewards to metrics."""
