"""Token generation: sampling, grammars, stop conditions, completions."""
