"""What every run has: a folder, a log, a loop, interrupts, collectives, scoring, evaluation."""
