"""Policy-gradient losses, one file each; a recipe chooses one by name."""
