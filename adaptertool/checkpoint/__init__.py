"""Where a checkpoint is, its bytes, its header and config.

Over the network that is `hub`; how a new checkpoint is made is `writing`.

target -> Folder -> Bytes -> Weights + AdapterConfig -> Adapter -> staged, verified, replaced
"""
