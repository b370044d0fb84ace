"""The recorder: writes results into the timeline, and sends incidents and events."""
