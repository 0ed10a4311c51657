r"""Peak memory of one update: chunked token statistics against full logits.

    python -m tests.benchmarks.update_memory

A Llama of SmolLM2-135M's shape with random weights takes one optimizer step on 4,096 completion
tokens (8 sequences of 512). The plain way forms the logits of all tokens at once and takes
log-softmax and entropy of them; the chunked way is the learner's. Each runs in a process of its
own; the figure is the process's high-water mark. Both ways are also compared for their loss.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

ROWS, LENGTH = 8, 512
SHAPES = {
    # vocabulary, hidden, intermediate, layers, heads, key-value heads
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
    "small": (16384, 64, 128, 2, 4, 2),
}


def measure(way: str, shape: str, checkpointing: bool) -> dict[str, float]:
    """One update in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlvr.learner.models import Models
    from rlvr.learner.parameter_store import LocalStore
    from rlvr.learner.settings import LearnerSettings
    from rlvr.policy.batching import padded_inputs
    from rlvr.policy.model import Policy

    vocabulary, hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=True,
        )
    )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model).train()
    engine = LocalStore(Models(policy), {"policy": LearnerSettings(lr=1e-6)})
    ids = torch.randint(0, vocabulary, (ROWS, LENGTH + 1)).tolist()
    inputs = padded_inputs([row[:1] for row in ids], [row[1:] for row in ids], range(ROWS))
    started = time.perf_counter()
    if way == "chunked":
        stats = policy(inputs, entropy=True)
        logprobs, entropy = stats.logprobs_N, stats.entropy_N
    else:
        hidden_states = policy.backbone(
            input_ids=inputs.input_ids_RL,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids_RL,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden_states[inputs.predict_N])
        all_logprobs = torch.log_softmax(logits, -1)
        logprobs = all_logprobs.gather(-1, inputs.targets_N[:, None])[:, 0]
        entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    loss = -logprobs.mean() - 0.001 * entropy.mean()
    engine.backward(loss)
    engine.step(1.0)
    return {
        "loss": float(loss.detach()),
        "seconds": time.perf_counter() - started,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def compare(shape: str, checkpointing: bool) -> dict[str, dict[str, float]]:
    """Both ways, each in a fresh process."""
    results = {}
    for way in ("plain", "chunked"):
        command = [sys.executable, "-m", "tests.benchmarks.update_memory", "--way", way]
        command += ["--shape", shape, *(["--checkpointing"] if checkpointing else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    """Print the comparison as a table, or measure one way for :func:`compare`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--way", choices=("plain", "chunked"))
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.shape, options.checkpointing)))
        return
    print("activations   way      peak GiB  seconds  loss")
    for checkpointing in (True, False):
        label = "recomputed" if checkpointing else "kept"
        results = compare(options.shape, checkpointing)
        for way, row in results.items():
            print(
                f"{label:12}  {way:8}  {row['peak_gib']:7.2f}  {row['seconds']:7.1f}  "
                f"{row['loss']:.6f}",
                flush=True,
            )
        ratio = results["chunked"]["peak_gib"] / results["plain"]["peak_gib"]
        print(f"{label:12}  chunked / plain {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
