"""Where a checkpoint is, its bytes, its header and config, and how a new one is written.

target -> Folder -> Bytes -> Weights + AdapterConfig -> Adapter -> staged, verified, replaced
"""
