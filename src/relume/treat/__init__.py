"""Treatments: changes made to a live model while it trains."""
