"""Terms added to the policy loss, one file each; a recipe lists those it wants."""
