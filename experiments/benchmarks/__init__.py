"""Measurements of speed and memory that the measuring commands make."""
