"""Pictures: read, the ink found, one digit made an image like those of MNIST.

Plain image processing, without models and without JAX. OpenCV computes morphology with
wide kernels and connected components: a closing of 100 × 100 in a picture of 1024 × 768
takes 2 ms. scikit-image has no decomposition of wide kernels and takes seconds.
"""
