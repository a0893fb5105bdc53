"""What serving software adds to a machine: one YAML for each runtime."""
