"""The networks: vision tower, projector, media encoders, language model."""
