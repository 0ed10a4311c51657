"""Characters of several tokens arrive whole, whoever writes which half of them."""

from types import SimpleNamespace

import pytest
import torch

from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.pieces import PieceEngine
from rlvr.distill.plan import trace_of
from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.settings import TransformersTraceSettings
from rlvr.distill.trace_model import LoadedModel
from rlvr.distill.trace_request import TraceRequest
from rlvr.distill.vocabulary_match import VocabularySettings
from tests.distill.test_lockstep import generate
from tests.distill.vocabularies import byte_level

STORY = "naïve 日本語 → 🙂🙃, añade 数"
PROMPT = "the sum "


class Scripted(torch.nn.Module):
    """A model that writes given tokens, one for each position, whatever was written before."""

    def __init__(self, prompt, script, vocabulary):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(
            max_position_embeddings=None, _attn_implementation="sdpa", vocab_size=vocabulary
        )
        self.config.get_text_config = lambda: self.config
        self.base_model = lambda **_: None
        table = torch.zeros(len(prompt) + len(script) + 99, vocabulary)
        for place, token in enumerate(script):
            table[len(prompt) - 1 + place, token] = 30.0
        self.table = table

    def forward(self, input_ids, position_ids, **_):
        return SimpleNamespace(logits=self.table[position_ids])


def ids_of(tokenizer, text):
    return tuple(tokenizer.encode(text))


@pytest.mark.parametrize("wrong", [(), (2, 3, 7, 11, 12, 13), tuple(range(0, 40, 2))])
def test_tokens_of_a_character_may_come_from_both(recipe, wrong):
    tokenizer = byte_level(262)
    prompt, story = ids_of(tokenizer, PROMPT), (*ids_of(tokenizer, STORY), tokenizer.eos_token_id)
    assert len(story) > len(STORY) + 10, "characters are split"
    assert any("\ufffd" in tokenizer.decode([token]) for token in story)
    proposed = [token + 1 if place in wrong else token for place, token in enumerate(story)]
    models = [Scripted(prompt, script, len(tokenizer)) for script in (proposed, story)]
    requests = [TraceRequest(f"p{index}", 0, prompt, prompt) for index in range(3)]
    for block in (1, 4):
        found, _ = generate(
            *models, requests, AcceptanceRule(), max_tokens=99, stop=story[-1:], block=block, rows=2
        )
        for item in found.values():
            assert item.token_ids == story
            places = [place for place, draw in enumerate(item.draws) if draw == 0]
            assert places == [place for place in wrong if place < len(story)]
    settings: DistillRecipe = recipe()
    problem = SimpleNamespace(id="p0", answer="1")
    row = trace_of(
        found["p0", 0],
        SimpleNamespace(recipe=settings),
        SimpleNamespace(problem=problem, ids=prompt),
        tokenizer,
    )
    assert (row.text, row.prompt) == (STORY, PROMPT)


@pytest.mark.parametrize("piece", ["word", "character"])
@pytest.mark.parametrize("other", [STORY, "naïve 日本人 → 🙂🙃, añade 四"])
def test_pieces_of_text_carry_characters_between_vocabularies(piece, other):
    """The student knows the story; where the teacher tells another, it writes its own."""
    teacher, student = byte_level(262), byte_level(300)
    assert ids_of(teacher, STORY) != ids_of(student, STORY)
    sides = []
    for tokenizer, text in ((teacher, other), (student, STORY)):
        prompt = ids_of(tokenizer, PROMPT)
        script = (*ids_of(tokenizer, text), tokenizer.eos_token_id)
        model = Scripted(prompt, script, len(tokenizer))
        ends = (tokenizer.eos_token_id,)
        sides.append((prompt, LoadedModel(tokenizer, model, ends, None, len(tokenizer))))
    (theirs, teacher_side), (ours, student_side) = sides
    engine = PieceEngine(
        teacher_side,
        student_side,
        VocabularySettings(matching="text", piece=piece),
        AcceptanceRule(threshold=0.5, draws=2),
        student_side.stop_ids,
        99,
        0,
        TransformersTraceSettings(rows=2),
    )
    for item in engine.generate([TraceRequest(f"p{index}", 0, ours, theirs) for index in range(3)]):
        text = student.decode(list(item.token_ids), skip_special_tokens=True)
        assert (text, item.finish_reason) == (STORY, "stop")
        accepted = sum(draw > 0 for draw in item.draws)
        # Characters alone are cut otherwise than words: the student may prefer its own cut.
        assert (accepted == len(item.draws)) == (other == STORY and piece == "word")
        assert accepted > 3
