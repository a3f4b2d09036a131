"""Installed as ``cpips.weights``: the encoders that ship with cpips (``NAME.safetensors``) and their cards (``NAME.json``)."""
