"""A model elsewhere: clips are sent to a server with OpenAI's API."""
