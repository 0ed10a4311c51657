"""Words that deny or weaken what stands beside them: no part of an answer with one is dropped."""

import re

DENIAL = re.compile(
    r"\b(?:not|never|cannot|isn|aren|wasn|wrong|false|incorrect|untrue|invalid|unlikely|impossible"
    r"|doubt(?:ful)?|neither|nor|except|excluding|unless|contrary|instead|rather|otherwise|hardly"
    r"|(?:other|anything|everything|far|rather) (?:than|but|except|from)|mistake(?:n|nly)?|errors?"
    r"|maybe|perhaps|possibly)\b|n't",
    re.IGNORECASE,
)
