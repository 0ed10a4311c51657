"""Generation: the engine protocol, the engines, and the function that turns prompts into groups."""
