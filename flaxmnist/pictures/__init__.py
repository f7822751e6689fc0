"""Reads pictures, finds the ink, and makes images like those of MNIST from digits.

This is plain image processing, without models and without JAX. OpenCV serves for
morphology and connected components, because `find_ink` needs closings with kernels of
hundreds of pixels in milliseconds.
"""
