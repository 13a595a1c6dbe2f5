"""Traces to rewards."""
