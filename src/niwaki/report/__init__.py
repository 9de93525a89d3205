"""What a person sees: heatmaps as pictures, contact sheets, curves."""

from niwaki.report._curves import plot_trajectories
from niwaki.report._heatmaps import colour, contact_sheet

__all__ = ["colour", "contact_sheet", "plot_trajectories"]
