"""Tensors of files and of models in memory, as streams of named chunks."""
