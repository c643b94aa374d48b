"""Pixels to files and back: the only place in core that imports torch, numpy, Pillow or PyAV."""
