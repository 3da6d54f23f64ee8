"""Random projections: torch's samplers, the recipes made of them, bit-for-bit verification, fingerprints.

Nothing here knows a PEFT method; a method says what its basis is made of (`adaptertool.methods`), and this package draws it.
"""
