"""Methods added to vLLM's workers through ``worker_extension_cls``.

Only vLLM's workers import this module. vLLM is not imported at the top, so that the module can be
imported without it.
"""

from pathlib import Path
from typing import Any


class WeightRepair:
    """Mixed into vLLM's worker class; its methods are called by name with ``collective_rpc``."""

    model_runner: Any

    def sees_weights(self, folder: str) -> bool:
        """Whether ``folder`` holds a model; reloading from an empty folder would end the engine."""
        return (Path(folder) / "config.json").is_file()

    def repack_output_heads(self) -> int:
        """Pack embeddings and output heads again from their current weights; return their number.

        On a CPU vLLM multiplies with a packed copy of these matrices. A reload fills the weight
        that a tied head shares with the embedding and packs the embedding, but not the head. On
        other devices there is no packed copy, and this does nothing.
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
