"""Predictors of which experts a prompt will use: rules, a light mixture, and trained XLNets."""
