"""Keep what outlives Redis in an SQL database: SQLite or PostgreSQL."""
