"""Traces and rewards to the next policy."""
