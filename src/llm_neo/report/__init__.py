"""What a finished run shows: the summary on the terminal, the picture of its curves, the student's model card."""

from llm_neo.report.curves import draw_curves
from llm_neo.report.model_card import model_card
from llm_neo.report.terminal import summary

__all__ = ["draw_curves", "model_card", "summary"]
