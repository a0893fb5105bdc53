"""Experts in two parts that are cached and copied on their own: the top and the bottom of MoEpic.

A cache policy that answers `partition` splits them, and `open_books` then takes the classes of this
package. Each specialises the one in the file of the same name of `moesim.simulator.control`; where
experts are whole nothing here is called. A part of an expert is a *unit*, an int like an expert's,
so that books of experts are books of units (``residency.py``).
"""
