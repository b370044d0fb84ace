"""Pictures and videos as users give them, and their pixels as the vision tower takes them."""
