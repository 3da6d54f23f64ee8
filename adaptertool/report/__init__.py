"""Results as text, JSON, HTML, and what pipelines read. Pure functions of a result; nothing here prints."""
