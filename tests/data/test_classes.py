"""Which output is which class: matched by name, or refused; never shifted by an absent folder."""

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES as TORCHVISION

from niwaki import evaluation
from niwaki.data import (
    Preprocessing,
    check_labels,
    check_same_classes,
    imagenet_ids,
    imagenet_names,
    match_classes,
    number_classes,
    open_data,
)
from niwaki.errors import DataError

COLOUR = Preprocessing(8, mean=(0, 0, 0), std=(1, 1, 1))
TEN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = [str(digit) for digit in range(10)]
MNIST = [f"{number} - {word}" for number, word in enumerate(TEN)]


def fill(folder, *names, count=1):
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (8, 8), (20 * number, image, 0)).save(folder / name / f"{image}.png")
    return folder


def test_the_ids_are_those_of_torchvisions_names():
    assert match_classes(TORCHVISION, imagenet_ids()) == list(range(1000))
    assert match_classes(imagenet_ids(), TORCHVISION) == list(range(1000))
    assert match_classes(imagenet_ids(), imagenet_names()) == list(range(1000))
    assert len(set(imagenet_names())) == 1000


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda name: name.replace(" ", "_"),
        lambda name: name.replace(" ", "-").title(),
        lambda name: name.replace(" ", ""),
        lambda name: f"007_{name}",
    ],
)
def test_every_name_is_known_in_its_usual_spellings(change):
    # The dog and the jacket differ by a capital letter alone.
    names = [name for name in TORCHVISION if name.casefold() != "cardigan"]
    changed = [change(name) for name in names]
    expected = [TORCHVISION.index(name) for name in names]
    assert match_classes(changed[::-1], TORCHVISION) == expected[::-1]


def test_imagenette_by_what_people_call_it():
    """The outputs are those of the data set's page."""
    folders = [
        "n01440764-tench",
        "English_springer_spaniel",
        "Cassette Player",
        "n03000684",
        "church, church building",
        "02_French-horn",
        "dustcart",
        "gas pump",
        "golfball",
        "chute",
    ]
    expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert match_classes(folders, imagenet_ids()) == expected
    names = [TORCHVISION[output] for output in expected]
    wnids = [imagenet_ids()[output] for output in expected]
    # A network of these ten alone: WordNet's words tell which is which.
    assert match_classes(wnids, names) == list(range(10))
    assert match_classes(names[::-1], wnids) == list(range(10))[::-1]


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (["b", "c"], ["a", "b", "c"], [1, 2]),
        (["truck", "Airplane", "frog"], ["airplane", "frog", "truck"], [2, 0, 1]),
        (MNIST, DIGITS, list(range(10))),
        (DIGITS[3:], MNIST, list(range(3, 10))),
        (["03", "07"], DIGITS, [3, 7]),
        (["10", "2", "0"], TORCHVISION, [10, 2, 0]),
        (["1", "2"], ["1", "2", "other"], [0, 1]),
        (["+", "-"], ["-", "+"], [1, 0]),
        (["1_1", "11"], ["11", "1-1"], [1, 0]),
        (["001.Black_footed_Albatross"], ["x", "Black footed albatross"], [1]),
        (["Straße", "naïve"], ["naïve", "STRASSE"], [1, 0]),
    ],
)
def test_matched(classes, names, expected):
    assert match_classes(classes, names) == expected


@pytest.mark.parametrize(
    ("classes", "names", "said"),
    [
        (
            ["car", "ship"],
            ["automobile", "ship"],
            ": car. The outputs are automobile",
        ),
        (["goldfsh"], TORCHVISION, "'goldfsh' may be 'goldfish'"),
        (["Tench", "tench"], TORCHVISION, "'Tench', 'tench' are all named like the output 'tench'"),
        (["crane"], imagenet_names(), "any of the outputs 'crane .n02012849.' .134., 'crane"),
        (["1", "10"], ["a"] * 10, "are numbers .* only the outputs 0 to 9"),
        (["1", "a"], DIGITS, "1 of 2 classes are named like no output of the network: a"),
    ],
)
def test_refused_with_both_lists_and_the_way_out(classes, names, said):
    with pytest.raises(DataError, match=said) as error:
        match_classes(classes, names)
    assert "--outputs" in str(error.value)


def test_numbered_by_position_only_where_that_can_be_meant():
    assert number_classes(["cat", "dog"], 2) == [0, 1]
    assert number_classes(["no", "yes"], 1) == [0, 1]
    assert number_classes(["1", "2", "3"], 3) == [0, 1, 2]
    assert number_classes(["0", "2"], 3) == [0, 2]
    assert number_classes(["00", "01"], 2) == [0, 1]
    with pytest.raises(DataError, match=r"3 classes \(a, b, c\).* 10 outputs.*--outputs"):
        number_classes(["a", "b", "c"], 10)
    with pytest.raises(DataError, match="there are 10 classes"):
        number_classes(DIGITS, 1000)
    assert number_classes(["0", "10", "217"], 1000) == [0, 10, 217]
    eleven = sorted(map(str, range(11)))
    with pytest.raises(DataError, match=r"0,1,2,3,4,5,6,7,8,9,10; .*0,1,10,2,3,4,5,6,7,8,9:"):
        number_classes(eleven, 11)


def test_a_test_split_without_the_first_class_keeps_its_labels(tmp_path):
    fill(tmp_path / "train", "ape", "bee", "cow")
    fill(tmp_path / "test", "bee", "cow")
    test, train = (open_data(tmp_path, COLOUR, split=split) for split in ("test", "train"))
    assert test.classes == train.classes == ["ape", "bee", "cow"]
    assert test.targets == [1, 2]
    assert train.targets == [0, 1, 2]
    assert open_data(tmp_path, COLOUR, outputs=[5, 7, 3]).targets == [7, 3]
    assert open_data(tmp_path, COLOUR, classes=["cow", "bee", "ape"]).targets == [1, 0]


def test_a_class_that_training_lacks_shifts_nothing(tmp_path):
    fill(tmp_path / "train", "bee", "cow")
    fill(tmp_path / "val", "ape", "bee", "cow")
    val = open_data(tmp_path, COLOUR, split="val")
    assert val.classes == ["bee", "cow", "ape"]
    assert val.targets == [2, 0, 1]
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).eval()
    with pytest.raises(DataError, match=r"3 classes \(bee, cow, ape\).* 2 outputs"):
        evaluation.accuracy(network, val)


def test_images_of_few_classes_are_not_taken_for_the_first_outputs(tmp_path):
    few = open_data(fill(tmp_path, "b", "d"), COLOUR)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)).eval()
    with pytest.raises(DataError, match=r"2 classes \(b, d\).* 4 outputs"):
        evaluation.accuracy(network, torch.utils.data.DataLoader(few))
    evaluation.accuracy(network, few.matched(["a", "b", "c", "d"]))
    evaluation.accuracy(network, few.mapped([1, 3]))
    with pytest.raises(DataError, match=r"some are missing: 0, 2; .*outputs=.0, 2."):
        check_labels(torch.tensor([0, 1]), 3, open_data(fill(tmp_path / "n", "0", "2"), COLOUR))


def test_two_data_sets_of_the_same_classes(tmp_path):
    one = open_data(fill(tmp_path / "one", "ape", "bee"), COLOUR)
    other = open_data(fill(tmp_path / "other", "bee", "cow"), COLOUR)
    with pytest.raises(DataError, match="'bee' has the label 1 in one and 0 in the other"):
        check_same_classes(one, torch.utils.data.Subset(other, [0]), "both")
    check_same_classes(one, other.matched(["ape", "bee", "cow"]), "both")
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "other"))
    with pytest.raises(DataError, match="'bee' has the label"):
        check_same_classes(one, folder, "both")
    check_same_classes(one, (torch.zeros(1, 3), torch.zeros(1)), "both")
    with pytest.raises(DataError, match="'ape' in one and 'x' in the other have the same label"):
        check_same_classes(one, open_data(fill(tmp_path / "new", "x"), COLOUR), "both")


@pytest.mark.parametrize(("classes", "share", "warned"), [(2, 0.5, True), (2, 0.7, False)])
def test_near_chance_is_measured_by_class(classes, share, warned):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), [900, 100])  # always naming the first is 90 % right
    predicted = np.where(rng.random(1000) < share, labels, 1 - labels)
    assert (evaluation.near_chance(predicted, labels) is not None) == warned
    assert evaluation.near_chance(np.zeros(1000, int), labels) is not None
    assert evaluation.near_chance(labels, np.zeros(1000, int)) is None
