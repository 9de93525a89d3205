"""Quantus's own metrics, run on our methods."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.attribution import create
from niwaki.evaluation import quantus_explain

METHODS = ["gradient", "input_t_gradient", "lrp.epsilon", "lrp.epsilon_plus"]


@pytest.fixture(scope="module")
def quantus():
    pytest.importorskip("scipy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(100, 3),
    ).eval()


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    return generator.normal(size=(4, 1, 10, 10)), np.array([0, 1, 2, 0])


@pytest.mark.parametrize("method", METHODS)
def test_metrics_run_on_every_method(quantus, network, batch, method):
    inputs, targets = batch
    explain = quantus_explain(method)
    common = {"disable_warnings": True, "display_progressbar": False}
    metrics = {
        "flipping": quantus.PixelFlipping(features_in_step=10, perturb_baseline="black", **common),
        "sparseness": quantus.Sparseness(**common),
        "mprt": quantus.MPRT(
            similarity_func=quantus.similarity_func.correlation_spearman,
            return_average_correlation=True,
            **common,
        ),
    }
    for name, metric in metrics.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Quantus's own: deprecations, hints
            scores = metric(
                model=network,
                x_batch=inputs.astype(np.float32),
                y_batch=targets,
                explain_func=explain,
                device="cpu",
            )
        assert np.isfinite(scores).all(), name
        assert len(scores) == len(inputs), name
    if method == "gradient":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = metrics["sparseness"](
            model=network,
            x_batch=inputs.astype(np.float32),
            y_batch=targets,
            a_batch=create(method, network)
            .attribute(torch.tensor(inputs).float(), torch.tensor(targets))
            .numpy(),
        )
        ours = metrics["sparseness"](
            model=network,
            x_batch=inputs.astype(np.float32),
            y_batch=targets,
            explain_func=explain,
        )
    assert ours == pytest.approx(given)


def test_arrays_go_in_and_out(quantus, network, batch):
    inputs, targets = batch
    found = quantus_explain("lrp.epsilon", epsilon=0.1)(network, inputs, targets)
    tensors = torch.tensor(inputs).float(), torch.tensor(targets)
    expected = create("lrp.epsilon", network, epsilon=0.1, max_loss=None).attribute(*tensors)
    assert isinstance(found, np.ndarray)
    assert found.shape == inputs.shape
    np.testing.assert_array_equal(found, expected.numpy())
    # Options of the call overrule those of the adapter; the device is no option of the method.
    other = quantus_explain("lrp.epsilon", epsilon=0.5)
    again = other(model=network, inputs=inputs, targets=targets, epsilon=0.1, device="cpu")
    np.testing.assert_array_equal(again, found)
    with pytest.raises(TypeError, match="gamma"):
        other(network, inputs, targets, gamma=1)


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="did you mean"):
        quantus_explain("lrp.epsilom")
    monkeypatch.setattr("niwaki.evaluation._explainers.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'niwaki\[evaluation\]'"):
        quantus_explain("gradient")
    assert importlib.util.find_spec("niwaki") is not None
