"""Results as text, JSON, and what pipelines read. Pure functions of a result; nothing here prints."""
