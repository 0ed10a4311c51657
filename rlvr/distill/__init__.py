"""Reverse speculative decoding: traces that a teacher proposes and a student may refuse."""
