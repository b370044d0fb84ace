"""Connections to Redis: addresses, rights, errors, outages, and the memory that is left."""
