"""Incidents: what alerts have found, from the first sight to the end, and who was notified."""
