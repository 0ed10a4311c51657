"""The offline tasks: preferences, reward models, fine-tuning, and tools that score and rank."""
