"""Grading of programs: the program and its tests run in separate confined processes."""
