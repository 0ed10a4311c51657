"""The model as a function: loading, token statistics, micro-batches."""
