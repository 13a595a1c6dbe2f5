"""The study: the rows of the paper's tables on the built-in task, over seeds of base and training."""
