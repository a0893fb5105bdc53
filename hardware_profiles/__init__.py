"""Machines and serving software as data: one YAML each, every figure with its evidence."""

from moesim.hardware_profiles.catalogue import check, load, names
from moesim.hardware_profiles.drafts import new, write_new
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.runtime_schema import RuntimeProfile, load_runtime, runtime_names
from moesim.hardware_profiles.schema import HardwareProfile, json_schema

__all__ = [
    "HardwareProfile",
    "ProfileError",
    "RuntimeProfile",
    "check",
    "json_schema",
    "load",
    "load_runtime",
    "names",
    "new",
    "runtime_names",
    "write_new",
]
