"""Pretrained decoders: loaded whole or not at all, quantised, cut, adapted."""
