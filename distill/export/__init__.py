"""Files for other programs: an adapter in the names of each, or the whole checkpoint with the adapter inside."""

FORMATS = ("peft", "safetensors", "kohya", "diffusers", "merged", "merged-parts")
"""Names of the formats; distill/export/formats.py has the function of each."""
