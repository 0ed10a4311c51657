"""A run becomes a folder that transformers loads, that answers as the trainer did and says so."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlvr.data import load_template
from rlvr.hub.export import Wanted, export_run
from rlvr.hub.source import check_task, find_source
from rlvr.hub.weights import generation_config, with_chat_template
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.tiny import character_tokenizer
from tests.data.byte_tokenizers import CHATML, build
from tests.eval.small import ROWS
from tests.eval.small import run as evaluate
from tests.hub.runs import answers, generated, preference_values, rl_values, train


def front(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    return yaml.safe_load(text[4:].partition("\n---\n")[0]), text


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("which", ["run", "lora_run"])
def test_the_export_answers_token_by_token_as_the_trainer_did(which, step, request, tmp_path):
    source = request.getfixturevalue(which)
    export_run(source, Wanted(to=tmp_path / "model"), step=step)
    prompts, tokens = zip(*answers(source, step), strict=True)
    found = generated(tmp_path / "model", prompts)
    assert found == list(tokens)
    assert len({token for row in tokens for token in row}) > 20, "answers must not be trivial"
    before = [tokens for _, tokens in answers(source, 0)]
    assert found != before, "the run must have changed the model's answers"


def test_weights_are_the_checkpoints_to_the_bit_and_bfloat16_is_their_rounding(run, tmp_path):
    for dtype in ("float32", "bfloat16"):
        export_run(run, Wanted(to=tmp_path / dtype, dtype=dtype), step=2)
    trained = load_file(run / "checkpoints" / "step_000002" / "model" / "model.safetensors")
    whole = load_file(tmp_path / "float32" / "model.safetensors")
    rounded = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert set(whole) == set(rounded) == set(trained)
    for name, tensor in trained.items():
        assert torch.equal(whole[name], tensor)
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16))
    config = json.loads((tmp_path / "bfloat16" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_an_adapter_alone_is_loaded_onto_its_base(lora_run, tiny, tmp_path):
    from peft import AutoPeftModelForCausalLM

    folder = tmp_path / "adapter"
    export_run(lora_run, Wanted(to=folder, adapter_only=True))
    assert not (folder / "model.safetensors").exists()
    assert (folder / "adapter_model.safetensors").stat().st_size < 1e6
    model = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()
    trained = load_policy(find_source(lora_run).model, saved=find_source(lora_run).saved)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        difference = model(ids).logits - trained.causal_lm(ids).logits
    assert float(difference.abs().max()) < 1e-4
    data, text = front(folder)
    assert data["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in text


def test_an_adapter_of_a_base_that_moved_finds_it(lora_run, tiny, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(lora_run, moved)
    recipe = (moved / "recipe.yaml").read_text().replace(str(tiny), str(tmp_path / "gone"))
    (moved / "recipe.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=r"gone' does not exist"):
        export_run(moved, Wanted(to=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    export_run(moved, Wanted(to=tmp_path / "out"), base=str(tiny))
    export_run(lora_run, Wanted(to=tmp_path / "other"))
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "other"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_without_checkpoints_the_final_model_is_exported(run, lora_run, tmp_path):
    for source in (run, lora_run):
        bare = tmp_path / source.name
        shutil.copytree(source, bare, ignore=shutil.ignore_patterns("checkpoints"))
        export_run(bare, Wanted(to=tmp_path / f"{source.name}-bare"))
        export_run(source, Wanted(to=tmp_path / f"{source.name}-full"), step=4)
        one, two = (
            load_file(tmp_path / f"{source.name}-{kind}" / "model.safetensors")
            for kind in ("bare", "full")
        )
        assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in two)
        assert "4 of 4 steps" in (tmp_path / f"{source.name}-bare" / "README.md").read_text()


def test_the_same_step_gives_the_same_bytes(run, tmp_path):
    """What lets an interrupted upload go on."""
    folders = (tmp_path / "one" / "m", tmp_path / "two" / "m")
    for folder in folders:
        export_run(run, Wanted(to=folder))
    files = [
        {path.relative_to(f): path.read_bytes() for path in f.rglob("*") if path.is_file()}
        for f in folders
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 8


def test_generation_stops_and_samples_as_training_did(run, tmp_path):
    export_run(run, Wanted(to=tmp_path / "m"))
    config = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
    assert config["do_sample"]
    assert (config["temperature"], config["top_p"], config["top_k"]) == (1.0, 1.0, 0)
    assert "repetition_penalty" not in config


class TestCard:
    def test_it_says_what_was_done(self, run, tmp_path):
        export_run(run, Wanted(to=tmp_path / "m", license="apache-2.0"), step=2)
        data, text = front(tmp_path / "m")
        assert data["license"] == "apache-2.0"
        assert data["pipeline_tag"] == "text-generation"
        assert {"rlvr", "clip", "arxiv:2402.03300", "arxiv:1707.06347"} <= set(data["tags"])
        assert "after 2 of 4 steps" in text
        for part in ("Results", "Curves", "Method", "Data", "Use", "Reproduce", "Limits"):
            assert f"\n## {part}\n" in text
        assert "https://arxiv.org/abs/2402.03300" in text
        assert "rlvr train recipe.yaml" in text
        assert (tmp_path / "m" / "recipe.yaml").read_text() in text
        versions = json.loads((run / "run.json").read_text())["versions"]
        assert f"| torch | {versions['torch']} |" in text

    def test_pictures_are_there_and_are_png(self, run, tmp_path):
        export_run(run, Wanted(to=tmp_path / "m"))
        _, text = front(tmp_path / "m")
        pictures = sorted((tmp_path / "m" / "images").iterdir())
        assert len(pictures) >= 3
        for picture in pictures:
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert f"(images/{picture.name})" in text

    def test_accuracy_has_the_error_of_its_problems(self, run, tmp_path):
        """Against rows that are written by hand: 3 of 12 right is 25 % with an error of 12.5."""
        own = tmp_path / "run"
        shutil.copytree(run, own)
        for step, right in ((0, 0), (4, 3)):
            path = own / "evaluations" / f"step_{step:06d}.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for index, row in enumerate(rows):
                row |= {"correct": index < right or index > 9, "finish_reason": "stop"}
                if index > 9:
                    row["finish_reason"] = "length"  # cut: right, but counted as wrong
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        export_run(own, Wanted(to=tmp_path / "m"))
        data, text = front(tmp_path / "m")
        assert "| step 4 | held_out | 12 | accuracy | 25.0 ± 12." in text
        assert "| before training | held_out | 12 | accuracy | 0.0 ± 0.0 %" in text
        assert "+25.0 ± 12." in text
        (result,) = data["model-index"][0]["results"]
        assert result["metrics"] == [{"type": "accuracy", "value": 0.25}]

    def test_evaluations_stand_in_the_table_under_their_weights(self, run, tiny, tmp_path):
        problems = tmp_path / "sums.jsonl"
        problems.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        checkpoint = run / "checkpoints" / "step_000002"
        for name, model in (("final", run), ("early", checkpoint), ("base", tiny)):
            evaluate(model, problems, tmp_path / name)
        folders = tuple(tmp_path / name for name in ("base", "early", "final"))
        export_run(run, Wanted(to=tmp_path / "m", evaluations=folders))
        data, text = front(tmp_path / "m")
        for name in (tiny.name, "whole-step_000002", "this model"):
            assert re.search(rf"\| {name} \| sums \| 10 \| avg@2 \| \d+\.\d ± \d+\.\d % \|", text)
        assert "rlvr eval, protocol rlvr, grader rlvr" in text
        ours = [result["dataset"]["name"] for result in data["model-index"][0]["results"]]
        assert sorted(ours) == ["held_out", "sums"]
        export_run(run, Wanted(to=tmp_path / "m", evaluations=folders), step=2)
        _, text = front(tmp_path / "m")
        assert "| this model | sums |" in text
        assert "| whole | sums |" in text

    def test_only_what_was_measured_by_then_is_shown(self, run, tmp_path):
        export_run(run, Wanted(to=tmp_path / "m"), step=2)
        _, text = front(tmp_path / "m")
        assert "| step 2 | held_out |" in text
        assert "step 4" not in text

    def test_neither_token_nor_home_is_published(self, run, tmp_path, monkeypatch):
        own = tmp_path / "run"
        shutil.copytree(run, own)
        info = json.loads((own / "run.json").read_text())
        secret = "hf_" + "A1b2" * 8
        info["command"] = ["rlvr", "train", "/home/ada/r.yaml", f"x={secret}", "y=s3cret-s3cret"]
        (own / "run.json").write_text(json.dumps(info))
        monkeypatch.setenv("HF_TOKEN", "s3cret-s3cret")
        monkeypatch.setenv("HOME", "/home/ada")
        export_run(own, Wanted(to=tmp_path / "m"))
        _, text = front(tmp_path / "m")
        assert secret not in text
        assert "s3cret" not in text
        assert "rlvr train ~/r.yaml x=hf_... y=hf_..." in text


class TestChatTemplate:
    @pytest.mark.parametrize("name", ["question_text", "qwen_math_text", "raw"])
    def test_a_plain_text_template_is_written_as_jinja(self, name):
        tokenizer = character_tokenizer()
        tokenizer.chat_template = None
        template = load_template(name)
        with_chat_template(tokenizer, template.settings)
        for problem in ("1+1", 'a "quote" \\frac{1}{2}\n{{ x }} {% y %} ü 𝔽', " spaced "):
            messages = [{"role": "user", "content": problem}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            assert text == template.render(messages, tokenizer)
        with pytest.raises(Exception, match="single questions"):
            tokenizer.apply_chat_template([*messages, *messages], tokenize=False)

    def test_a_tokenizer_keeps_its_own(self):
        tokenizer = character_tokenizer()
        own = tokenizer.chat_template
        for name in ("plain", "question_text"):
            with_chat_template(tokenizer, load_template(name).settings)
            assert tokenizer.chat_template == own

    def test_a_jinja_file_of_the_recipe_is_taken_or_missed(self, tmp_path):
        tokenizer, path = character_tokenizer(), tmp_path / "own.jinja"
        path.write_text("{{ messages[0]['content'] }}!")
        settings = load_template({"mode": "chat", "chat_template": str(path)}).settings
        with_chat_template(tokenizer, settings)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert text == "a!"
        path.unlink()
        with pytest.raises(ValueError, match="no longer exists"):
            with_chat_template(tokenizer, settings)


class TestFaults:
    @pytest.fixture
    def own(self, run, tmp_path):
        shutil.copytree(run, tmp_path / "own")
        return tmp_path / "own"

    def refusal(self, run, tmp_path, match, **wanted):
        step = wanted.pop("step", None)
        with pytest.raises(ValueError, match=match) as caught:
            export_run(run, Wanted(to=tmp_path / "m", **wanted), step=step)
        assert not (tmp_path / "m").exists()
        assert "\n" not in str(caught.value)

    def test_no_run(self, run, tmp_path):
        self.refusal(tmp_path / "none", tmp_path, "is not a folder")
        self.refusal(run.parent, tmp_path, r"not a run .* it contains the runs whole")
        self.refusal(run / "model", tmp_path, "is not a run")
        checkpoint = run / "checkpoints" / "step_000002"
        self.refusal(checkpoint, tmp_path, r"is a checkpoint; name its run: .* --step 2")

    def test_a_task_of_another_kind_of_model(self, tmp_path):
        with pytest.raises(ValueError, match=r"task 'other', whose models export does not support"):
            check_task("other", tmp_path)

    def test_an_unknown_step_names_the_nearest(self, run, tmp_path):
        self.refusal(run, tmp_path, r"no weights of step 9; it has 2, 4: .* --step 4", step=9)
        self.refusal(run, tmp_path, r"nearest is --step 4", step=3)
        self.refusal(run, tmp_path, r"nearest is --step 2", step=1)

    def test_a_missing_or_damaged_shard_is_named(self, own, tmp_path):
        shard = own / "checkpoints" / "step_000004" / "model" / "model.safetensors"
        whole = shard.read_bytes()
        flipped = bytearray(whole)
        flipped[-1] ^= 1
        shard.write_bytes(bytes(flipped))
        self.refusal(own, tmp_path, r"model/model.safetensors does not match .*another step \(2\)")
        shard.write_bytes(whole[:-10])
        self.refusal(own, tmp_path, r"step 4 are damaged: model/model.safetensors has \d+ bytes")
        shard.unlink()
        self.refusal(own, tmp_path, r"model/model.safetensors is missing", step=4)
        export_run(own, Wanted(to=tmp_path / "m"), step=2)

    def test_a_damaged_part_of_the_optimizer_does_not_matter(self, own, tmp_path):
        (own / "checkpoints" / "step_000004" / "trainer.safetensors").unlink()
        export_run(own, Wanted(to=tmp_path / "m"))

    def test_a_final_model_without_a_shard_of_its_index(self, own, tmp_path):
        shutil.rmtree(own / "checkpoints")
        index = {"weight_map": {"a": "model-00001.safetensors", "b": "model.safetensors"}}
        (own / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refusal(own, tmp_path, "model-00001.safetensors is missing")
        (own / "model" / "model-00001.safetensors").write_bytes(b"\0" * 50)
        self.refusal(own, tmp_path, "model-00001.safetensors is damaged")

    def test_what_does_not_go_together(self, run, tmp_path):
        self.refusal(run, tmp_path, "there is no adapter", adapter_only=True)
        self.refusal(run, tmp_path, "remove --dtype", adapter_only=True, dtype="bfloat16")
        self.refusal(run, tmp_path, "need --push-to-hub", revision="x")
        with pytest.raises(ValueError, match="set the target"):
            export_run(run, Wanted())
        self.refusal(run, tmp_path, "contains no results.json", evaluations=(tmp_path,))

    def test_other_content_is_left_alone_unless_it_may_be_replaced(self, run, tmp_path):
        folder = tmp_path / "there"
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
        with pytest.raises(ValueError, match="contains other content"):
            export_run(run, Wanted(to=folder))
        assert (folder / "thesis.txt").read_text() == "mine"
        export_run(run, Wanted(to=folder, replace=True), step=2)
        assert not (folder / "thesis.txt").exists()
        export_run(run, Wanted(to=folder), step=4)  # an earlier export of the same run
        assert json.loads((folder / "rlvr.json").read_text())["step"] == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_run_of_preferences_is_exported(tiny, tmp_path):
    values = preference_values(
        tiny, tmp_path, losses=[{"name": "sigmoid"}, {"name": "sft", "weight": 0.1}]
    )
    pairs = {**values["data"]["source"], "limit": 20}
    values["evaluation"] = {"every": 2, "pairs": {"held_out": pairs}}
    folder = train(values)
    export_run(folder, Wanted(to=tmp_path / "m"))
    data, text = front(tmp_path / "m")
    assert {"preference", "sigmoid", "sft", "arxiv:2305.18290"} <= set(data["tags"])
    assert "| before training | held_out | 20 | reward accuracy |" in text
    assert "± " in text.partition("| step 4 | held_out | 20 | reward accuracy |")[2][:20]
    assert "training: file `pairs.jsonl`" in text


def responses(folder):
    """Right and wrong sums, labelled."""
    rows = [
        {"prompt": f"{a}+{b}=", "response": str(a + b + wrong), "correct": not wrong}
        for a in range(6)
        for b in range(6)
        for wrong in (0, 1)
    ]
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_reward_model_is_exported_with_its_own_words(tiny, tmp_path):
    path = responses(tmp_path)
    folder = train(
        {
            "task": "prm",
            "output": str(tmp_path / "run"),
            "steps": 4,
            "model": {"path": str(tiny)},
            "data": {"sources": [str(path)], "per_step": 12},
            "learner": {"lr": 3e-3},
            "evaluation": {"every": 2, "responses": {"held_out": [str(path)]}},
        }
    )
    export_run(folder, Wanted(to=tmp_path / "m"))
    data, text = front(tmp_path / "m")
    assert "pipeline_tag" not in data
    assert {"prm", "ce", "arxiv:2412.01981"} <= set(data["tags"])
    assert "rlvr prm score" in text
    assert "| step 4 | held_out | 72 | sign accuracy |" in text
    assert generated(tmp_path / "m", ["1+1="], limit=2)


def test_zero_rows_of_evaluation_are_said(tiny, tmp_path):
    values = rl_values(tiny, tmp_path / "run", evaluation={}, steps=2)
    export_run(train(values), Wanted(to=tmp_path / "m"))
    assert "Nothing was evaluated" in (tmp_path / "m" / "README.md").read_text()


def test_the_tokenizer_is_the_trainers(run, tmp_path):
    export_run(run, Wanted(to=tmp_path / "m"))
    own = load_tokenizer(find_source(run).tokenizer)
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert other.get_vocab() == own.get_vocab()
    assert other.chat_template == own.chat_template


def test_an_export_stops_where_turns_close():
    tokenizer = build(CHATML)
    config = generation_config(SimpleNamespace(recipe=None), None, tokenizer)
    assert config.eos_token_id == sorted(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))


def demonstrations(folder):
    path = folder / "demonstrations.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(6) for b in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 4}])
def test_fine_tuning_is_exported(tiny, tmp_path, length):
    path = demonstrations(tmp_path)
    folder = train(
        {
            "task": "sft",
            "output": str(tmp_path / "run"),
            **length,
            "model": {"path": str(tiny)},
            "data": {"sources": [path], "per_step": 18},
            "evaluation": {"every": 2, "traces": {"held_out": [path]}},
        }
    )
    export_run(folder, Wanted(to=tmp_path / "m m"))
    data, text = front(tmp_path / "m m")
    assert "sft" in data["tags"]
    assert "supervised fine-tuning on demonstrations" in text
    assert "demonstrations: `demonstrations.jsonl`" in text
    assert "vllm serve 'm m' --dtype float32" in text
    assert generated(tmp_path / "m m", ["1+1="], limit=2)


def test_an_explicit_reward_model_is_exported_with_its_head(tiny, tmp_path):
    path = responses(tmp_path)
    folder = train(
        {
            "task": "reward_model",
            "output": str(tmp_path / "run"),
            "steps": 2,
            "model": {"path": str(tiny)},
            "data": {"sources": [str(path)], "per_step": 12, "hold_out": 0.3},
        }
    )
    export_run(folder, Wanted(to=tmp_path / "m"))
    for name in ("reward_head.safetensors", "reward_head.json"):
        assert (tmp_path / "m" / name).read_bytes() == (folder / "model" / name).read_bytes()
    _, text = front(tmp_path / "m")
    assert "rlvr prm score responses.jsonl --model m --out scored.jsonl" in text
    with pytest.raises(ValueError, match="without its head"):
        export_run(folder, Wanted(to=tmp_path / "half", dtype="bfloat16"))


def test_the_code_of_a_card_prompts_as_the_run_did(tiny, tmp_path):
    """System text and the beginning of every response, to the token."""
    template = {"mode": "chat", "system": "Be 'brief'.", "prefill": "<think>\n"}
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    )
    template["chat_template"] = str(tmp_path / "chat.jinja")
    values = rl_values(tiny, tmp_path / "run", evaluation={}, steps=2)
    values["data"] |= {"template": template, "max_prompt_tokens": 80}
    export_run(train(values), Wanted(to=tmp_path / "m"))
    code = front(tmp_path / "m")[1].partition("```python\n")[2].partition("```")[0]
    lines = code.replace("'m'", repr(str(tmp_path / "m")))
    names: dict = {}
    exec(lines.replace("max_new_tokens=24", "max_new_tokens=1"), names)
    settings = load_template(template)
    expected = settings.encode(
        [{"role": "user", "content": "What is 12 + 30?"}], names["tokenizer"]
    )
    assert names["inputs"]["input_ids"][0].tolist() == expected
