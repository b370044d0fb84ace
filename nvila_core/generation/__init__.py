"""Draw tokens: sampling, grammars, stop conditions, completions."""
