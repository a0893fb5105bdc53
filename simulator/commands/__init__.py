"""The commands of the simulator, one file each; light to import, heavy inside."""
