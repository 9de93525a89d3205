"""What is known of a data set holds for its subsets; labels are those that samples come with."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import FakeData, ImageFolder, VisionDataset

from niwaki.auditing import Inpainted, Relabelled, Shifted, gather
from niwaki.data import Described, Images, Preprocessing, known_of, labels_of, open_data, references

PREPARED = Preprocessing(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CHOSEN = [11, 3, 4, 8, 0, 9]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{name}{number}.png")
    return open_data(tmp_path, PREPARED)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


def described(images: Any, **given: Any) -> Described:
    count = len(images)
    return Described(
        images,
        groups=[f"slide {i // 2}" for i in range(count)],
        centres=np.arange(count) % 3,
        regions={"corner": [np.eye(8, dtype=bool) * (i % 2) for i in range(count)]},
        **given,
    )


WAYS: dict[str, Callable[[Any], Any]] = {
    "a subset": lambda data: Subset(described(data), CHOSEN),
    "a subset described again": lambda data: Described(Subset(described(data), CHOSEN)),
    "a subset of a subset": lambda data: Subset(
        Subset(described(data), [*CHOSEN, 1, 2]), range(len(CHOSEN))
    ),
    "numbers in an array": lambda data: Subset(described(data), np.array(CHOSEN)),
    "a remedy on a subset": lambda data: Inpainted(
        Subset(described(data), CHOSEN), np.zeros((len(CHOSEN), 8, 8), dtype=bool)
    ),
    "a subset of a remedy": lambda data: Subset(Shifted(described(data), 1), CHOSEN),
}


@pytest.mark.parametrize("way", WAYS)
def test_groups_centres_and_regions_are_those_of_the_images(way: str, images: Images) -> None:
    data = WAYS[way](images)
    material = gather(network(), data, method="gradient", limit=4)
    for position, index in enumerate(material.indices):
        number = CHOSEN[index]
        assert material.groups[position] == f"slide {number // 2}"
        assert material.centres is not None
        assert material.centres[position] == number % 3
        assert material.regions["corner"][index].any() == bool(number % 2)
        assert material.labels[position] == number // 6
    assert material.grouped
    assert material.class_names == ("a", "b")
    assert known_of(data, "preprocessing") == PREPARED


NAMED: dict[str, Callable[[Images], Any]] = {
    "images": lambda data: data.subset(CHOSEN),
    "a subset": lambda data: Subset(data, CHOSEN),
    "a described subset": lambda data: Described(Subset(data, CHOSEN), preprocessing=PREPARED),
    "a subset of the described": lambda data: Subset(described(data), CHOSEN),
    "twice": lambda data: Described(Subset(Described(data), CHOSEN)),
}


@pytest.mark.parametrize("way", NAMED)
def test_examples_bear_the_names_of_their_own_files(way: str, images: Images) -> None:
    data = NAMED[way](images)
    material = gather(network(), data, method="gradient", limit=5)
    assert images.paths is not None
    for position, index in enumerate(material.indices):
        own = images.paths[CHOSEN[index]]
        assert material.describe(position)["name"] == f"{own.parent.name}/{own.name}"
        torch.testing.assert_close(material.inputs[position], images[CHOSEN[index]][0])


def test_images_that_are_joined_have_no_names_rather_than_wrong_ones(images: Images) -> None:
    joined = Described(ConcatDataset([Subset(images, CHOSEN), images]), preprocessing=PREPARED)
    material = gather(network(), joined, method="gradient")
    assert material.describe(7)["name"] == "image 7"


def test_what_is_given_counts_before_what_is_known(images: Images) -> None:
    again = Described(Subset(described(images), CHOSEN), groups=list("uvwxyz"), class_names="cd")
    assert again.groups is not None
    assert again.groups.tolist() == list("uvwxyz")
    assert again.classes == ["c", "d"]


# -- labels ------------------------------------------------------------------------------------


class Odd(Dataset[tuple[Tensor, int]]):
    """Ten digits, of which a sample says whether they are odd."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets
        self.target_transform = lambda target: int(target) % 2

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), self.target_transform(self.targets[index])


class Together(VisionDataset):
    """One transform of inputs and targets together."""

    def __init__(self) -> None:
        super().__init__(None, transforms=lambda image, target: (image, 1 - target))  # type: ignore[arg-type]
        self.targets = [0, 0, 0, 1] * 5

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        assert self.transforms is not None
        return self.transforms(torch.zeros(3, 8, 8), self.targets[index])


class Files(Dataset[tuple[Tensor, int]]):
    """Whose targets are the names of files."""

    targets = ("mask0.png",) * 10

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 8, 8), index % 2


def folder(path: Path, **given: Any) -> ImageFolder:
    for number in range(4):
        (path / f"class{number}").mkdir()
        for image in range(3):
            Image.new("RGB", (8, 8)).save(path / f"class{number}" / f"{image}.png")
    return ImageFolder(path, **given)


SETS: dict[str, Callable[[Path], Any]] = {
    "numbers": lambda path: Odd(list(range(10)) * 4),
    "a tensor": lambda path: Odd(torch.arange(10).repeat(4)),
    "an array": lambda path: Odd(np.arange(10).repeat(4)),
    "a subset": lambda path: Subset(Odd(list(range(10)) * 4), range(3, 33)),
    "described": lambda path: Described(Odd(list(range(10)) * 4)),
    "a remedy": lambda path: Shifted(Odd(list(range(10)) * 4), 1),
    "new labels": lambda path: Relabelled(Odd(list(range(10)) * 4), [0, 0, 1, 2] * 10),
    "joined": lambda path: ConcatDataset([Odd(list(range(10)) * 4), Odd([1, 2] * 20)]),
    "a folder of torchvision": lambda path: folder(
        path, transform=lambda image: torch.zeros(3, 8, 8)
    ),
    "one with a target_transform": lambda path: folder(
        path, transform=lambda image: torch.zeros(3, 8, 8), target_transform=lambda t: t // 2
    ),
    "a transform of both": lambda path: Together(),
    "names of files": lambda path: Files(),
    "no targets": lambda path: FakeData(20, (3, 8, 8), 2, transform=lambda i: torch.zeros(3, 8, 8)),
}


@pytest.mark.parametrize("name", SETS)
def test_labels_are_those_that_the_samples_come_with(name: str, tmp_path: Path) -> None:
    data = SETS[name](tmp_path)
    truth = [int(data[index][1]) for index in range(len(data))]
    assert labels_of(data) == truth
    if hasattr(data, "targets") and isinstance(data, (Described, Shifted, Relabelled)):
        assert list(data.targets) == truth
    least = min(Counter(truth).values())
    drawn = references(data, least, seed=0)
    assert Counter(int(drawn[i][1]) for i in range(len(drawn))) == dict.fromkeys(set(truth), least)
