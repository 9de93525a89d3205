"""On trained networks and real images, several processes find what one finds."""

from __future__ import annotations

import pytest
import real_jobs as jobs
import torch
from closeness import assert_close

pytestmark = pytest.mark.long
NETWORKS = ("resnet20", "vgglike", "efficientnet_lite0")


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_plans_and_rebuilt_weights(crew, shared, name):
    [expected] = crew(1, jobs.same_everywhere, "scored_and_pruned", name, str(shared))
    for count in (2, 3, 4):
        for found in crew(count, jobs.same_everywhere, "scored_and_pruned", name, str(shared)):
            assert_close(found["scores"], expected["scores"], 0)
            assert found["plan"] == expected["plan"]
            assert found["accuracies"] == expected["accuracies"]
            assert_close(found["weights"], expected["weights"])


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(crew, shared, name):
    [expected] = crew(1, jobs.same_everywhere, "counted", name, str(shared))
    for count in (2, 3, 4):
        for found in crew(count, jobs.same_everywhere, "counted", name, str(shared)):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_findings_and_p_values(crew, shared, name):
    [expected] = crew(1, jobs.same_everywhere, "audited", name, str(shared))
    assert any(p < 1 for _, _, p in expected)
    for count in (2, 3, 4):
        for found in crew(count, jobs.same_everywhere, "audited", name, str(shared)):
            assert found == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_slides(crew, shared, name):
    pytest.importorskip("openslide", reason="the extra slides is not installed")
    [(rows, maps)] = crew(1, jobs.same_everywhere, "mapped", name, str(shared))
    assert len(rows) % 4 == 1  # the last batch is of one tile
    assert all(values.isfinite().any() for values in maps.values())
    for count in (2, 3, 4):
        first, *others = crew(count, jobs.same_everywhere, "mapped", name, str(shared))
        assert first[0] == rows
        assert first[1].keys() == maps.keys()
        for title, values in maps.items():
            assert torch.equal(first[1][title].nan_to_num(9.0), values.nan_to_num(9.0)), title
        assert others == [(rows, {})] * len(others)  # the first puts the maps together
