"""Heatmaps written as they come are those that are written at once."""

import h5py
import numpy as np
import torch

from niwaki.report import HeatmapFiles, save_hdf5, save_npy


def batches_of(count):
    generator = torch.Generator().manual_seed(0)
    heat = {
        "gradient": torch.randn(count, 3, 4, 5, generator=generator),
        "lrp.epsilon": torch.randn(count, 1, 4, 5, generator=generator).double(),
    }
    said = torch.randn(count, 7, generator=generator)
    return heat, said, torch.arange(count)


def write(folder, kind, heat, said, labels):
    with HeatmapFiles(folder, kind, len(labels)) as files:
        for start in range(0, len(labels), 4):
            part = slice(start, start + 4)
            files.write({n: h[part] for n, h in heat.items()}, said[part], labels[part])


def test_npy(tmp_path):
    heat, said, labels = batches_of(10)
    (tmp_path / "once").mkdir()
    (tmp_path / "parts").mkdir()
    save_npy(tmp_path / "once", heat)
    write(tmp_path / "parts", "npy", heat, said, labels)
    for name in heat:
        files = [tmp_path / kind / f"{name}.npy" for kind in ("once", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert np.array_equal(np.load(files[1]), heat[name].numpy())


def test_hdf5(tmp_path):
    heat, said, labels = batches_of(10)
    save_hdf5(tmp_path / "once.hdf5", heat, prediction=said, label=labels)
    write(tmp_path, "hdf5", heat, said, labels)
    with h5py.File(tmp_path / "once.hdf5") as one, h5py.File(tmp_path / "heatmaps.hdf5") as two:
        names: list[str] = []
        one.visit(names.append)
        for name in names:
            if isinstance(one[name], h5py.Dataset):
                assert np.array_equal(one[name][()], two[name][()])
                assert one[name].dtype == two[name].dtype
        assert sorted(one) == sorted(two)
        assert two["gradient/label"] == two["label"]  # one dataset, linked
