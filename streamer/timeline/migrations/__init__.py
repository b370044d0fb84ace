"""Change the tables of a database step by step, with Alembic.

`versions/` holds one file a step, named by its revision: `0002_what_was_seen.py`. A new table,
column or index needs its definition in `streamer/timeline/tables.py`, by which a new database gets
it, and a new step here for those that exist; a test compares both. The steps run in one
transaction, so a step that fails leaves the database as it was.
"""
