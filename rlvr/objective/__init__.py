"""Pure maths on tensors: advantages, policy losses, regularisers, the one reducer."""
