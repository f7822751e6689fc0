"""PyTorch until 99 %: the recipe of `cnn:fast`, or PyTorch's own example of MNIST.

The recipe ends with the accuracy of all three splits, as `flaxmnist train` does.
"""

import sys
from pathlib import Path

import numpy as np

RECIPE = "PyTorch, the same recipe"
EXAMPLE = "PyTorch's example until 99 %"


def main(name: str, seed: str, folder: str) -> None:
    """Trains and prints the accuracy of all splits, or of test for the example."""
    import torch
    from torch import nn

    functional = nn.functional
    torch.manual_seed(int(seed))

    def arrays(*splits: str) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [
            [np.load(Path(folder, f"{split}-{kind}.npy")) for split in splits]
            for kind in ("images", "labels")
        ]
        images, labels = (torch.from_numpy(np.concatenate(part)) for part in parts)
        return images.reshape(-1, 1, 28, 28), labels.long()

    recipe = name == RECIPE
    images, labels = arrays("train") if recipe else arrays("train", "validation")
    evaluated = ("train", "validation", "test") if recipe else ("test",)
    splits = {split: arrays(split) for split in evaluated}
    mean, deviation = (0.0, 1.0) if recipe else (0.1307, 0.3081)

    def scaled(pixels: torch.Tensor) -> torch.Tensor:
        some = (pixels.float() / 255 - mean) / deviation
        return some.contiguous(memory_format=torch.channels_last)

    if recipe:
        size, smoothing, peak = 64, 0.05, 7e-3
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1152, 128), nn.ReLU(), nn.Linear(128, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.7, 0.9))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, len(labels) // size, cycle_momentum=False
        )
    else:
        size, smoothing = 64, 0.0
        model = nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
            *(nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
        )
        optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    model = model.to(memory_format=torch.channels_last)

    def accuracy_of(split: str) -> float:
        model.eval()
        images, labels = splits[split]
        with torch.inference_mode():
            parts = zip(images.split(1000), labels.split(1000), strict=True)
            hits = sum(int((model(scaled(x)).argmax(1) == y).sum()) for x, y in parts)
        return hits / len(labels)

    accuracies = dict.fromkeys(evaluated, 0.0)
    while accuracies["test"] < 0.99:
        model.train()
        for rows in torch.randperm(len(labels)).split(size):
            if len(rows) < size:
                break
            optimizer.zero_grad()
            logits = model(scaled(images[rows]))
            loss = functional.cross_entropy(
                logits, labels[rows], label_smoothing=smoothing
            )
            loss.backward()
            optimizer.step()
            if recipe:
                schedule.step()
        accuracies = {split: accuracy_of(split) for split in evaluated}
        if recipe:
            break
        schedule.step()
    for split, accuracy in accuracies.items():
        print(f"{split} {accuracy:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
