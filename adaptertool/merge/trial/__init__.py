"""The merge itself, tried without a model: shapes, values, and what is wrong although PEFT raises nothing."""
