"""The description of MNIST: the default of everything that depends on the data."""

# Height, width and channels of an image.
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
CLASS_NAMES = tuple("0123456789")
