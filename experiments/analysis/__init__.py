"""Saved runs, opened again and measured."""
