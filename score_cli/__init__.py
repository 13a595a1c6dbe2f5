"""Teach a language model to correct itself: SCoRe as staged batch jobs over Parquet files."""

__version__ = "0.1.0"
