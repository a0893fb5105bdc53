"""Is it true? Comparison of prediction and execution, with the evidence committed."""
