"""Drivers: each carries out the controller's commands on one kind of device."""
