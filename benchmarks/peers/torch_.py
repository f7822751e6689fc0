"""PyTorch; variants "eager", "channels_last", "compile" and "dataloader"."""

import torch
from torch import nn

from benchmarks.peers import EVAL_BATCH, MODERN, RECIPES

F = nn.functional


def network_of(name):
    """Returns the network, for `[batch, 1, 28, 28]`."""
    if name == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    layers, channels = [], 1
    modern = name == "modern"
    for features in MODERN if modern else (32, 64):
        layers.append(nn.Conv2d(channels, features, 3 if modern else 5, padding="same"))
        layers += [nn.BatchNorm2d(features)] if modern else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = features
    layers.append(nn.Flatten())
    if modern:
        return nn.Sequential(*layers, nn.Linear(128 * 9, 10))
    head = (nn.Linear(3136, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10))
    return nn.Sequential(*layers, *head)


class Peer:
    """See :mod:`benchmarks.peers`."""

    def __init__(self, network, batch_size, images, labels, test, variant):
        torch.manual_seed(0)
        self.images = torch.from_numpy(images)[:, None]
        self.labels = torch.from_numpy(labels).long()
        self.test = torch.from_numpy(test[0])[:, None], torch.from_numpy(test[1]).long()
        self.batch_size, self.variant = batch_size, variant
        self.model = network_of(network)
        self.layout = torch.contiguous_format
        if variant == "channels_last":
            self.layout = torch.channels_last
            self.model = self.model.to(memory_format=self.layout)
        name, rate = RECIPES[network]
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
        self.optimizer = make(self.model.parameters(), lr=rate)
        self.forward = torch.compile(self.model) if variant == "compile" else self.model
        self.batches = iter(())

    def _shuffled(self):
        if self.variant == "dataloader":
            data = torch.utils.data.TensorDataset(self.images, self.labels)
            yield from torch.utils.data.DataLoader(
                data, self.batch_size, shuffle=True, drop_last=True
            )
            return
        order = torch.randperm(len(self.labels))
        for rows in order.split(self.batch_size):
            if len(rows) == self.batch_size:
                yield self.images[rows], self.labels[rows]

    def _next(self):
        batch = next(self.batches, None)
        if batch is None:
            self.batches = self._shuffled()
            batch = next(self.batches)
        return batch

    def _scaled(self, images):
        return images.float().div_(255).contiguous(memory_format=self.layout)

    def train(self, steps):
        """Makes `steps` updates."""
        self.model.train()
        for _ in range(steps):
            images, labels = self._next()
            self.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.forward(self._scaled(images)), labels).backward()
            self.optimizer.step()

    @torch.inference_mode()
    def evaluate(self):
        """Returns the accuracy on the test images."""
        self.model.eval()
        images, labels = self.test
        hits = 0
        for some, expected in zip(
            images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True
        ):
            hits += int((self.forward(self._scaled(some)).argmax(1) == expected).sum())
        return hits / len(labels)

    @torch.inference_mode()
    def predict(self, image):
        """Returns the class of an image."""
        self.model.eval()
        return int(
            self.forward(self._scaled(torch.from_numpy(image)[None, None])).argmax()
        )
