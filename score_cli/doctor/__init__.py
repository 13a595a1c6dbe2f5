"""`score doctor`: what is installed here, and what training a model would take."""
