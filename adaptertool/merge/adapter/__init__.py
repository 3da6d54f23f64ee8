"""What PEFT makes of an adapter's file and config on a base: the layers it attaches to, and the tensors that it loads."""
