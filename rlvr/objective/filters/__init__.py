"""Which tokens take part in the policy loss, one file each; a recipe lists those it wants."""
