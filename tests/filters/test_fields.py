"""Receptive fields against the closed form of a chain, and against the support of a gradient."""

import pytest
import torch
from torch import nn

from niwaki.errors import DataError
from niwaki.filters import Field, receptive_fields
from niwaki.models import zoo

CHAINS = [
    [(3, 1, 1, 1)],
    [(5, 2, 2, 1), (3, 1, 1, 1)],
    [(3, 1, 0, 2), (2, 2, 0, 1), (3, 2, 1, 1)],
    [(1, 1, 0, 1), (7, 3, 3, 1)],
]


def closed_form(chain):
    """Start of the first field, step, and size: start and jump accumulate over the layers."""
    start, jump, size = 0, 1, 1
    for kernel, stride, padding, dilation in chain:
        start -= padding * jump
        size += (kernel - 1) * dilation * jump
        jump *= stride
    return start, jump, size


@pytest.mark.parametrize("chain", CHAINS)
def test_fields_of_a_chain_equal_the_closed_form(chain):
    layers = []
    for kernel, stride, padding, dilation in chain:
        layers += [nn.Conv2d(3, 3, kernel, stride, padding, dilation), nn.BatchNorm2d(3), nn.ReLU()]
        nn.init.zeros_(layers[-3].weight)  # what a unit can see does not depend on its weights
    last = str(3 * (len(chain) - 1))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    start, jump, size = closed_form(chain)
    field = receptive_fields(model, (3, 25, 25), [last])[last]
    assert field.size == (size, size)
    assert field.rows == field.columns
    assert field.rows == tuple(
        (start + i * jump, start + i * jump + size) for i in range(len(field.rows))
    )


def test_fields_equal_the_support_of_the_gradient_of_a_network_with_branches():
    model = zoo.resnet20().eval()
    for module in model.modules():  # all contributions positive: none cancels, none is cut off
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    name = "layer2.0.conv2"
    field = receptive_fields(model, (3, 32, 32), [name])[name]
    seen = {}
    handle = model.layer2[0].conv2.register_forward_hook(lambda m, i, o: seen.update(out=o))
    x = torch.ones(1, 3, 32, 32, requires_grad=True)
    model(x)
    handle.remove()
    for position in (0, 5 * 16 + 9, 255):
        row, column = divmod(position, 16)
        (gradient,) = torch.autograd.grad(seen["out"][0, 0, row, column], x, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2)).nonzero().flatten()
        columns = gradient[0].abs().sum((0, 1)).nonzero().flatten()
        top, bottom, left, right = field.at(position)
        assert (max(top, 0), min(bottom, 32)) == (int(rows.min()), int(rows.max()) + 1)
        assert (max(left, 0), min(right, 32)) == (int(columns.min()), int(columns.max()) + 1)


def test_a_linear_layer_sees_the_whole_image_and_the_model_stays(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    field = receptive_fields(model, (3, 12, 12), ["7"])["7"]
    assert field.rows == field.columns == ((0, 12),)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(DataError, match="meets no layer 'nowhere'"):
        receptive_fields(model, (3, 12, 12), ["nowhere"])


def test_positions_that_look_at_the_padding_do_not_count():
    spans = ((-2, 3), (-1, 4), (0, 5), (2, 7), (4, 9))  # see 3, 4, 5, 5 and 4 of 8 lines
    inside = Field(spans, ((0, 8),)).inside(8, 8)
    assert inside.tolist() == [False, True, True, True, True]
    corners = Field(spans, spans).inside(8, 8).reshape(5, 5)
    assert corners[1].tolist() == [False, False, True, True, False]  # 16 of 25 are too few
    assert Field(((-9, 11),) * 2, ((0, 2),)).inside(2, 2).all()  # all alike
