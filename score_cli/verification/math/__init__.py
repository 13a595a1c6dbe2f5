"""Grading of mathematics: find the answer, read it, compare it with the gold answer."""
