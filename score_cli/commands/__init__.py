"""The larger commands of the command line, thin over the stage functions."""
