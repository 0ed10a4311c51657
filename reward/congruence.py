r"""Congruences as answers: ``n \equiv 1, 3 \pmod 4`` is a set of residues of one modulus."""

import re

from reward.normalize import squeeze

_CONGRUENCE = re.compile(r"(?:(.{0,80})\\equiv)?([-\d,\s]{1,200})\\mod\s?(\d{1,9})")
_JOINT = re.compile(r"\s(?:and|or)\s")


def same_congruence(gold: str, pred: str) -> bool | None:
    r"""Compare two cleaned congruences; ``None`` if the reference is not a congruence.

    The left side of ``\equiv`` may be missing in the answer, but not the modulus.
    """
    wanted = _CONGRUENCE.fullmatch(_JOINT.sub(", ", gold))
    if wanted is None or wanted.group(1) is None:
        return None
    got = _CONGRUENCE.fullmatch(_JOINT.sub(", ", pred))
    if got is None or wanted.group(3) != got.group(3):
        return False
    if got.group(1) is not None and squeeze(got.group(1).strip()) != squeeze(wanted[1].strip()):
        return False
    residues = [_residues(match.group(2), int(match.group(3))) for match in (wanted, got)]
    return residues[0] is not None and residues[0] == residues[1]


def _residues(text: str, modulus: int) -> set[int] | None:
    parts = [part.strip() for part in text.split(",")]
    if modulus < 1 or not all(re.fullmatch(r"-?\s?\d{1,18}", part) for part in parts):
        return None
    return {int(part.replace(" ", "")) % modulus for part in parts}
