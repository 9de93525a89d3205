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
            assert_close(found["scores"], expected["scores"])
            assert found["plan"] == expected["plan"]
            assert found["accuracies"] == expected["accuracies"]
            assert_close(found["weights"], expected["weights"])


def test_counts(crew, shared):
    [expected] = crew(1, jobs.same_everywhere, "counted", "resnet20", str(shared))
    for count in (2, 3, 4):
        for found in crew(count, jobs.same_everywhere, "counted", "resnet20", str(shared)):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["resnet20", "vgglike"])
def test_findings_and_p_values(crew, shared, name):
    [expected] = crew(1, jobs.same_everywhere, "audited", name, str(shared))
    for count in (2, 3, 4):
        for found in crew(count, jobs.same_everywhere, "audited", name, str(shared)):
            assert found == expected
