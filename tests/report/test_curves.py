"""Accuracy against what is left: which curves are drawn, and of which images."""

import pytest
from matplotlib.figure import Figure

from niwaki.pruning import Step, Trajectory
from niwaki.report import _figures, _pruning_plots, plot_trajectories


@pytest.fixture
def axis(monkeypatch):
    """Draw, and return the axis in place of a file."""

    def draw(trajectories):
        drawn = []
        monkeypatch.setattr(
            _pruning_plots, "save_figure", lambda path, figure, vector: drawn.append(figure)
        )
        plot_trajectories("unused.png", trajectories)
        return drawn[0].axes[0]

    return draw


def step(number, accuracy, tuned=None, validation=None):
    left = 100 - 20 * number
    return Step(number, left, left, left, accuracy, tuned, 0.0, validation)


def lines(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_tuned_run_shows_the_accuracy_before_and_after(axis):
    rows = (step(0, 0.9), step(1, 0.5, 0.8), step(2, 0.25, 0.75))
    drawn = axis({"lrp": Trajectory(rows)})
    assert lines(drawn) == {
        "lrp, before fine-tuning": [[100, 90], [80, 50], [60, 25]],
        "lrp, fine-tuned": [[80, 80], [60, 75]],
    }
    assert legend(drawn) == list(lines(drawn))
    assert drawn.get_ylabel() == "accuracy on test images (%)"


def test_a_run_tuned_in_the_end_has_one_tuned_point(axis):
    drawn = axis({"lrp": Trajectory((step(0, 0.9), step(1, 0.5), step(2, 0.25, 0.75)))})
    assert lines(drawn)["lrp, fine-tuned"] == [[60, 75]]
    assert drawn.lines[1].get_marker() not in (None, "None", "")


def test_images_that_decided_are_labelled_so(axis):
    rows = (step(0, 0.75, None, 1.0), step(1, 0.5, None, 0.875))
    drawn = axis({"weight": Trajectory(rows)})
    assert lines(drawn) == {
        "weight": [[100, 75], [80, 50]],
        "weight, on the validation images that decided": [[100, 100], [80, 87.5]],
    }


def test_all_criteria_are_drawn_alike(axis):
    run = Trajectory((step(0, 0.9), step(1, 0.5)))
    drawn = axis({"lrp": run, "weight": run, "random": run})
    assert legend(drawn) == ["lrp", "weight", "random"]
    assert len({(line.get_linewidth(), line.get_zorder()) for line in drawn.lines}) == 1
    assert len({line.get_color() for line in drawn.lines}) == 3


@pytest.mark.parametrize("letters", [50, 51, 400])
def test_a_long_name_leaves_the_axes_their_room(letters, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(_figures, "write_atomically", lambda path, write: kept.append(write))
    name = "".join(chr(ord("a") + number % 26) for number in range(letters))
    monkeypatch.setattr(Figure, "savefig", lambda figure, aside, **_: kept.append(figure))
    plot_trajectories("unused.png", {name: Trajectory((step(0, 0.9), step(1, 0.5)))})
    assert len(kept) == 3  # as PNG, SVG and PDF
    kept[0](tmp_path / "drawn.png")
    (shown,) = legend(kept[-1].axes[0])
    assert shown == name if letters <= 50 else shown[:20] == name[:20] and shown[-20:] == name[-20:]
    kept[-1].draw_without_rendering()
    assert kept[-1].axes[0].get_window_extent().width > 300
