"""Prints the reference of all options: ``docs/reference/options.md``."""

from flaxmnist.config.reference import markdown

if __name__ == "__main__":
    print(markdown(), end="")
