"""The loops, and the recipe's root schema."""
