"""Trains on a directory of images in colour, one directory per class.

    python examples/image_folder.py birds --predict robin.jpg

    birds/train/blue tit/1.png     or     birds/blue tit/1.png
    birds/train/robin/1.png               birds/robin/1.png
    birds/test/…

Without birds/test, a sixth of each class is drawn for it. All images have one size, at
most 256×256 pixels; pictures to predict may have any size.
"""

import argparse

import flaxmnist

# Three convolutions, each with batch normalization; then the mean over the image.
MODEL = {"name": "convnet", "layers": "32C3-BN-MP2-64C3-BN-MP2-128C3-BN-AP-D"}
# A new distortion of each image at every step.
AUGMENT = {"rotate": 10, "scale": 0.1, "translate": 2}


def main(folder, pictures=(), **options):
    """Trains; `options` are those of `flaxmnist.train`. Returns the finished run."""
    recipe = {"model": MODEL, "augment": AUGMENT, "num_epochs": 20, "batch_size": 32}
    run = flaxmnist.train("cnn", data=folder, **recipe | options)
    for path, prediction in zip(pictures, run.predict(pictures), strict=True):
        classes = (f"{name} {share:.1%}" for name, share in prediction.top(3))
        print(f"{path}: {', '.join(classes)}")
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="with a directory per class")
    parser.add_argument("--predict", dest="pictures", nargs="*", default=[])
    main(**vars(parser.parse_args()))
