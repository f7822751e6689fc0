"""The description of MNIST: the default of everything that depends on the data."""

# Height, width and channels of an image.
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
CLASS_NAMES = tuple("0123456789")


def is_like(image_shape: tuple[int, ...], class_names: tuple[str, ...]) -> bool:
    """Returns whether these are images of the ten digits, of MNIST's shape."""
    return image_shape == IMAGE_SHAPE and class_names == CLASS_NAMES
