"""Variants of a loaded student: with other adapters beside its own, or with 8-bit weights."""
