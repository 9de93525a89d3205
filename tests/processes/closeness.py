"""When the sums of several processes are those of one."""

from collections.abc import Mapping

from torch import Tensor


def assert_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-6
) -> None:
    """Compare by the largest value of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = float(value.double().abs().max())
        apart = float((found[name].double() - value.double()).abs().max())
        assert apart <= tolerance * max(size, 1e-12), (name, apart, size)
