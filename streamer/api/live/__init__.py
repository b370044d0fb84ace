"""What callers are sent while it happens: events, pictures, video and pieces of answers."""
