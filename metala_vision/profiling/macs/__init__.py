"""Multiply-accumulates of whole models, counted in three ways."""
