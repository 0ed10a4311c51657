"""Methods added to vLLM's workers through ``worker_extension_cls``.

Only vLLM's workers import this module. vLLM is not imported at the top, so that the module can be
imported without it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class WeightRepair:
    """Mixed into vLLM's worker class; its methods are called by name with ``collective_rpc``."""

    model_runner: Any
    _arrivals: Any = None

    def sees_weights(self, folder: str) -> bool:
        """Whether ``folder`` holds a model; reloading from an empty folder would end the engine."""
        return (Path(folder) / "config.json").is_file()

    def note_weights(self) -> None:
        """Note from now on what the model's ``load_weights`` is given, by whatever route."""
        from rlvr.rollout.arrival import Arrivals

        if self._arrivals is None:
            model = self.model_runner.get_model()
            self._arrivals = Arrivals(self._parameters)
            model.load_weights = self._arrivals.watch(model.load_weights)
        self._arrivals.begin()

    def noted_weights(self) -> dict[str, Any]:
        """What was noted of each tensor since :meth:`note_weights`, and what was not filled.

        Only parameters that count before and after a reload are told as ``missed``: during one a
        tied output head stands apart, and after one a layer may have other parameters.
        """
        if self._arrivals is None:  # a process that has loaded no other weights yet
            return {"tensors": {}, "missed": []}
        return {
            "tensors": self._arrivals.tensors,
            "missed": self._arrivals.missed(self._parameters()),
        }

    def _parameters(self) -> set[str]:
        return {name for name, _ in self.model_runner.get_model().named_parameters()}

    def repack_output_heads(self) -> int:
        """Pack embeddings, output heads and experts from their current weights; their number.

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
        return len(packed) + self._pack_experts()

    def _pack_experts(self) -> int:
        """Pack the experts of a mixture, which a CPU multiplies as packed, and vLLM only once.

        A reload leaves them as they were sent, so this must follow every reload, once.
        """
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return 0
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        count = 0
        for module in self.model_runner.get_model().modules():
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            experts = getattr(kernel, "fused_experts", None)
            if isinstance(experts, CPUUnquantizedExperts):
                experts.process_weights_after_loading(module)
                count += 1
        return count

    def held_adapter(
        self, number: int, names: Sequence[str]
    ) -> dict[str, tuple[float, float] | None]:
        """Fingerprints of the matrices with which the adapter ``number`` is computed.

        Args:
            number: Of the adapter.
            names: Of its tensors, in peft's format; None is the answer for one that has no place.
        """
        from rlvr.rollout.adapter_proof import fingerprint

        place = _places(self.model_runner)
        slot = self.model_runner.lora_manager._adapter_manager.lora_index_to_id.index(number)
        found = {name: place(name) for name in names}
        return {
            name: None if stacked is None else fingerprint(stacked[slot, 0])
            for name, stacked in found.items()
        }


def _places(model_runner: Any) -> Callable[[str], Any]:  # noqa: ANN401
    """Where vLLM holds an adapter's tensor by its name in peft's format: [slots, 1, M, N].

    vLLM computes some layers together, whose adapters it then holds as parts of one.
    """
    from vllm.lora.utils import parse_fine_tuned_lora_name

    manager = model_runner.lora_manager._adapter_manager
    renames = getattr(manager.model, "hf_to_vllm_mapper", None)
    renames = renames and renames.get_rename_mapper()
    parts = {
        part: (module, index)
        for module, own in manager.packed_modules.items()
        for index, part in enumerate(own)
    }

    def place(name: str) -> Any:  # noqa: ANN401
        layer, is_a = parse_fine_tuned_lora_name(name, renames)
        module, index = parts.get(layer, (layer, 0))
        if module not in manager.modules:
            return None
        found = manager.modules[module]
        return (found.lora_a_stacked if is_a else found.lora_b_stacked)[index]

    return place
