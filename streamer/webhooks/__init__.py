"""Send events to programs of others, by HTTP, as Standard Webhooks 1.0.0."""
