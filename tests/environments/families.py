"""The chat templates of many model families, which TRL brings along."""

import re
from pathlib import Path

import trl

FOLDER = Path(trl.__file__).parent / "chat_templates"
# Their tokenizers come with a processor of images, or they are the same but for marks of a mask.
_LEFT_OUT = re.compile(r"_training|idefics|llava|vl$|_vl|smolvlm")
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not _LEFT_OUT.search(path.stem))
_SPECIAL = re.compile(r"<[|｜][^<>'\"{}\s]+[|｜]>|<(?:start|end)_of_turn>|<\|?turn\|?>")


def specials():
    """The special tokens of all templates."""
    texts = [(FOLDER / f"{name}.jinja").read_text() for name in TEMPLATES]
    return sorted({token for text in texts for token in _SPECIAL.findall(text)})
