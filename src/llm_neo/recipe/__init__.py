"""The recipe of a run: a frozen typed tree, its YAML, its overrides, and every fault named at once."""

from llm_neo.recipe.environment import check_environment
from llm_neo.recipe.load import dump_recipe, load_recipe, recipe_names, recipe_text
from llm_neo.recipe.tree import (
    Data,
    FineTune,
    HeldOut,
    LabelledSource,
    Lora,
    Loss,
    Prompt,
    Recipe,
    Runtime,
    ScoreLabel,
    Section,
    Student,
    Teacher,
    TextSource,
    Train,
)

__all__ = [
    "Data",
    "FineTune",
    "HeldOut",
    "LabelledSource",
    "Lora",
    "Loss",
    "Prompt",
    "Recipe",
    "Runtime",
    "ScoreLabel",
    "Section",
    "Student",
    "Teacher",
    "TextSource",
    "Train",
    "check_environment",
    "dump_recipe",
    "load_recipe",
    "recipe_names",
    "recipe_text",
]
