"""The queues of jobs and of results, in Redis."""
