"""Every method of iNNvestigate's registry against what iNNvestigate 1.0.9 computed."""

import h5py
import pytest
import torch
from torch import nn

import niwaki

# Stem of the oracle's file -> (name of the method, options)
METHODS = {
    "BoundedDeepTaylor": ("deep_taylor.bounded", {"low": -128.0, "high": 128.0}),
    "Deconvnet": ("deconvnet", {}),
    "DeepTaylor": ("deep_taylor", {}),
    "Gradient": ("gradient", {}),
    "GuidedBackprop": ("guided_backprop", {}),
    "InputTimesGradient": ("input_t_gradient", {}),
    "IntegratedGradients": ("integrated_gradients", {"quadrature": "left"}),
    "LRPAlpha1Beta0": ("lrp.alpha_1_beta_0", {}),
    "LRPAlpha1Beta0IgnoreBias": ("lrp.alpha_1_beta_0_IB", {}),
    "LRPAlpha2Beta1": ("lrp.alpha_2_beta_1", {}),
    "LRPAlpha2Beta1IgnoreBias": ("lrp.alpha_2_beta_1_IB", {}),
    "LRPEpsilon": ("lrp.epsilon", {}),
    "LRPEpsilonIgnoreBias": ("lrp.epsilon_IB", {}),
    "LRPFlat": ("lrp.flat", {}),
    "LRPSequentialPresetA": ("lrp.sequential_preset_a", {}),
    "LRPSequentialPresetAFlat": ("lrp.sequential_preset_a_flat", {}),
    "LRPSequentialPresetB": ("lrp.sequential_preset_b", {}),
    "LRPSequentialPresetBFlat": ("lrp.sequential_preset_b_flat", {}),
    "LRPWSquare": ("lrp.w_square", {}),
    "LRPZ": ("lrp.z", {}),
    "LRPZIgnoreBias": ("lrp.z_IB", {}),
    "LRPZPlus": ("lrp.z_plus", {}),
    "LRPZPlusFast": ("lrp.z_plus_fast", {}),
    "LRPZ_Flat_input_layer_rule": ("lrp.z", {"first": "flat"}),
    "LRPZ_boxed_input_layer_rule": ("lrp.z", {"first": (-10.0, 10.0)}),
    "SmoothGrad": ("smoothgrad", {"samples": 512}),  # the reference's own noise is enough
}
LAYERS = ["Conv2D", "Conv2D_relu", "Dense", "Dense_relu", "AveragePooling2D", "MaxPooling2D"]


class OneLayer(nn.Module):
    """One layer, then flatten in Keras's order (channels last)."""

    def __init__(self, name: str, group: h5py.Group) -> None:
        super().__init__()
        self.dense = name.startswith("Dense")
        weights = [
            torch.from_numpy(group["weights"][k][...]).double() for k in sorted(group["weights"])
        ]
        if name.startswith("Conv2D"):
            self.layer: nn.Module = nn.Conv2d(3, 5, 3)
            weights[0] = weights[0].permute(3, 2, 0, 1)
        elif self.dense:
            self.layer = nn.Linear(3, 5)
            weights[0] = weights[0].T
        else:
            self.layer = nn.AvgPool2d(2) if name.startswith("Average") else nn.MaxPool2d(2)
        self.double()
        for parameter, value in zip(self.layer.parameters(), weights, strict=True):
            parameter.data = value.contiguous()
        self.activation = nn.ReLU() if name.endswith("relu") else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1) if self.dense else x
        x = self.activation(self.layer(x))
        return (x if self.dense else x.permute(0, 2, 3, 1)).flatten(1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("stem", METHODS)
def test_equals_innvestigate(stem, layer, shared):
    name, options = METHODS[stem]
    with h5py.File(shared / "oracles" / "innvestigate" / f"{stem}.hdf5") as file:
        group = file[layer]
        model = OneLayer(layer, group).eval()
        inputs = torch.from_numpy(file["input"][...]).permute(0, 3, 1, 2)
        expected = torch.from_numpy(group["attribution"][...]).permute(0, 3, 1, 2)
        output = torch.from_numpy(group["output"][...])
    torch.testing.assert_close(model(inputs), output.double(), rtol=1e-4, atol=1e-6)
    if name.startswith("lrp") or name.startswith("deep_taylor"):
        options = {**options, "max_loss": None}  # the references do not look at what gets lost
    found = niwaki.explain(model, inputs, method=name, **options)
    rtol, atol = (0.25, 0.15) if stem == "SmoothGrad" else (1e-4, 1e-6)
    torch.testing.assert_close(found, expected.double(), rtol=rtol, atol=atol)
