"""The long-lived processes: ingest worker, gpu worker, recorder, and the RQ worker they share."""
