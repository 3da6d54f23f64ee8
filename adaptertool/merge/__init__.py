"""Would an adapter merge into its base model? The base's layers from its headers and config, names, flags, the dry run.

base files -> Base -> resolve (file) + flags (code) -> decide -> dry run -> MergeReport
"""
