"""Turn messages and media into token ids, tiles and positions."""
