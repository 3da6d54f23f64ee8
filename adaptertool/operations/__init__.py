"""What the commands do, as functions from a target to a result. They print nothing."""
