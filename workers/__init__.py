"""The long-lived processes: ingest worker, model worker, recorder, and the RQ worker they share."""
