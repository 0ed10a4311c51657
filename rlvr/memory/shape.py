"""What an estimate of memory has to know of a model: numbers that its configuration gives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A causal language model in numbers; :func:`rlvr.policy.shape.read_shape` makes it.

    Attributes:
        parameters: Weights of the model without adapters.
        trained: Weights that are trained: all, or those of the adapters.
        linear: Of ``parameters``, those of linear layers without the output head, which are what
            ``model.frozen_weights`` of int8 or nf4 stores in fewer bits.
        plain: Of ``parameters``, those of linear layers, output head and embeddings, which are what
            can be held in bfloat16; norms and a mixture's experts stay float32.
        largest: Weights of the largest tensor that is trained.
        hidden: Width of the residual stream.
        intermediate: Width of what a token goes through in an MLP; of a mixture, its experts'.
        layers: Blocks.
        key_value_width: Width of the keys of a token in a block, all heads together.
        vocabulary: Rows of the output head.
        active: Weights that a token goes through, of a mixture those of its experts.
        text: The size for people.
        context: Longest sequence that it was configured for; None is not said.
        stored: Format of its published weights.
    """

    parameters: int
    trained: int
    linear: int
    plain: int
    largest: int
    hidden: int
    intermediate: int
    layers: int
    key_value_width: int
    vocabulary: int
    active: int
    text: str
    context: int | None = None
    stored: str = "float32"

    @property
    def adapted(self) -> bool:
        """Whether adapters alone are trained, and the model itself is frozen."""
        return self.trained < self.parameters
