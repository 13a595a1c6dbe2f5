"""What is on disk: schemas, Parquet files, provenance, checkpoints."""
