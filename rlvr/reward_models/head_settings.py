"""The choice of heads that read a reward off a transformer; the heads are in ``heads.py``."""

from typing import Annotated, Literal

from pydantic import Field

from rlvr.settings import Settings


class LastToken(Settings):
    """A linear map of the last token's final hidden state."""

    name: Literal["last_token"] = "last_token"
    """The last token."""


class LayerQueries(Settings):
    """Learned queries that several layers answer in turn."""

    name: Literal["layer_queries"] = "layer_queries"
    """Several layers."""
    layers: tuple[int, ...] | None = None
    """Which, counted from 1; null is four (or as many as there are), evenly spaced up to the
    last."""
    heads: int = Field(8, ge=1)
    """Heads of each attention; the model's width must be a multiple."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Before the last map, while training."""

    def layers_of(self, width: int, layers: int) -> tuple[int, ...]:
        """Which layers of a model answer, counted from 1.

        Args:
            width: The model's hidden size.
            layers: How many layers it has.

        Raises:
            ValueError: Layers that are not there, or a width that the heads do not divide.
        """
        chosen = self.layers
        if chosen is None:
            count = min(4, layers)
            chosen = tuple(round(layers * (place + 1) / count) for place in range(count))
        if (
            not chosen
            or list(chosen) != sorted({*chosen})
            or not 1 <= chosen[0] <= chosen[-1] <= layers
        ):
            raise ValueError(
                f"head.layers = {list(chosen)}: give numbers from 1 to {layers}, the model's "
                "layers, in rising order"
            )
        if width % self.heads:
            raise ValueError(
                f"head.heads = {self.heads} does not divide the model's width of {width}; choose "
                "a divisor"
            )
        return chosen


HeadSettings = Annotated[LastToken | LayerQueries, Field(discriminator="name")]
"""A head of a recipe."""
