"""The base model, without building it: its files, the names in them, and what its code and config say of its layers.

files -> names (what a layer is called in the file) + code (what the model has) -> layers (both held against each other)
"""
