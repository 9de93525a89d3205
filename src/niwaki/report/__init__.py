"""What a person sees: heatmaps as pictures and arrays, contact sheets, curves, galleries."""

from niwaki.report._arrays import HeatmapFiles, save_hdf5, save_npy
from niwaki.report._audit_page import write_audit, write_watch
from niwaki.report._audit_pictures import (
    plot_examples,
    plot_maps,
    plot_stains,
    plot_strategies,
)
from niwaki.report._colours import colour, colour_range, is_diverging, overlay
from niwaki.report._evaluation_plots import plot_perturbation, plot_randomisation
from niwaki.report._gallery import save_filters
from niwaki.report._network import LayerInfo, NetworkInfo, network_info
from niwaki.report._pictures import Pictures, heat_strip, photograph, save_heatmaps
from niwaki.report._pruning_plots import (
    plot_agreement,
    plot_comparison,
    plot_removed,
    plot_trajectories,
)
from niwaki.report._report import write_report
from niwaki.report._sheets import contact_sheet
from niwaki.report._slide_viewer import slide_overview, write_slide_viewer

__all__ = [
    "HeatmapFiles",
    "LayerInfo",
    "NetworkInfo",
    "Pictures",
    "colour",
    "colour_range",
    "contact_sheet",
    "heat_strip",
    "is_diverging",
    "network_info",
    "overlay",
    "photograph",
    "plot_agreement",
    "plot_comparison",
    "plot_examples",
    "plot_maps",
    "plot_perturbation",
    "plot_randomisation",
    "plot_removed",
    "plot_stains",
    "plot_strategies",
    "plot_trajectories",
    "save_filters",
    "save_hdf5",
    "save_heatmaps",
    "save_npy",
    "slide_overview",
    "write_audit",
    "write_slide_viewer",
    "write_watch",
    "write_report",
]
