"""Many runs: what they are, who carries them out, and where their rows go."""
