"""What vLLM's workers learn beside their own methods, through ``worker_extension_cls``.

Imported inside vLLM's workers only; vLLM is not imported at the top so that the module can be
looked at without it.
"""

from pathlib import Path
from typing import Any


class WeightRepair:
    """Mixed into vLLM's worker class; called by name through ``collective_rpc``."""

    model_runner: Any

    def sees_weights(self, folder: str) -> bool:
        """Whether there is a model in ``folder``: a reload from nothing would end the engine."""
        return (Path(folder) / "config.json").is_file()

    def repack_output_heads(self) -> int:
        """Pack embeddings and output heads again from their current weights; how many there were.

        On a CPU vLLM multiplies with a packed copy of these matrices. Reloading fills the weight
        that a tied head shares with the embedding, and packs the embedding, but not the head. On
        other devices there is no packed copy and this does nothing.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        packed = [
            module
            for module in self.model_runner.get_model().modules()
            if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear")
        ]
        for module in packed:
            module.quant_method.process_weights_after_loading(module)
        return len(packed)
