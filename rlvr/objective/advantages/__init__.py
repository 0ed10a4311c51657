"""From rewards to advantages, one file each; a recipe chooses one by name."""
