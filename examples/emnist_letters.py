"""Trains on the letters of EMNIST, and lists the pairs that the model confuses.

    python examples/emnist_letters.py DIR

DIR contains emnist-letters-train-images-idx3-ubyte.gz and its three companions, of
gzip.zip at https://www.nist.gov/itl/products-and-services/emnist-dataset. The images
in these files are transposed; the name "emnist/letters" has them turned upright.
"""

import argparse
import collections
import json

import flaxmnist


def confusions(run):
    """Returns the number of test images by pair of letters, the most frequent first."""
    names, pairs = run.dataset.class_names, collections.Counter()
    for line in run.predict_split("test").read_text().splitlines():
        example = json.loads(line)
        label, found = example["label"], example["classes"]
        if label != found:
            pairs[names[label], names[found]] += 1
    return pairs.most_common()


def main(folder, **options):
    """Trains; `options` are those of `flaxmnist.train`. Returns the finished run."""
    options = {"num_epochs": 3, "data.dir": folder} | options
    run = flaxmnist.train("cnn", data="emnist/letters", **options)
    for (letter, taken_for), count in confusions(run)[:5]:
        print(f"{letter} is taken for {taken_for} {count} times")
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="the directory of the four files")
    main(**vars(parser.parse_args()))
