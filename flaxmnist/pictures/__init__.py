"""Pictures: read, the ink found, one digit made an image like those of MNIST.

Plain image processing, without models and without JAX.
"""
