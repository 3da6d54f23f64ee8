"""Would an adapter merge into its base model? Answered from headers, configs and what is read of the values.

base (its layers) -> adapter (what PEFT attaches to them) -> trial (the merge, layer by layer) -> result, ways out
"""
