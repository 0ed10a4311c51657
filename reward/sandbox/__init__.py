"""Run programs that nobody has read, and learn what they print and return.

`Box` is one sandbox, `way_of` says how one is made on this machine. `reward.domains.code` judges
responses with them; docs/code.md has what a program can and cannot do.
"""
