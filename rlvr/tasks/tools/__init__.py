"""What is done with reward models, from files: score, rank, locate first errors, judge prefixes."""
