"""The recipes that the Merge and Quantize buttons create from a result of a run, with that run as their parent."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit.one_stage.origins import held_out_data
from cockpit.one_stage.recipe import Export, Input, Merge, OneStageRecipe, Origin, one_stage_recipe
from cockpit.one_stage.sources import Source
from engines.run_dir.paths import RunDir


def merge_recipe(run: RunDir, recipe: str, source: Source, base: Input, dtype: str) -> OneStageRecipe:
    """The recipe of one merge stage: the adapter and its base model.

    Args:
        run: the run that the adapter comes from.
        recipe: the name of that run's recipe.
        source: the adapter.
        base: the adapter's base model.
        dtype: the type of the merged weights; `base` keeps the base model's type.
    """
    return one_stage_recipe(Merge(base, (source.input,), dtype), recipe, origin_of(run, source))


def export_recipe(
    run: RunDir, recipe: str, source: Source, file_types: Sequence[str], base: Input | None = None
) -> OneStageRecipe:
    """The recipe of one export stage: the model, and the file types to write. An adapter needs its `base`."""
    return one_stage_recipe(export_of(run, source, file_types, base), recipe, origin_of(run, source))


def export_of(run: RunDir, source: Source, file_types: Sequence[str], base: Input | None) -> Export:
    """An export of a run's result, compared on the held-out part of its training data.

    An adapter is merged into its base while the files are written.
    """
    data = held_out_data(run, source.stage)
    if source.kind == "model":
        return Export(source.input, tuple(file_types), data=data)
    assert base is not None, "an adapter is merged into its base model"
    return Export(base, tuple(file_types), adapter=source.input, data=data)


def origin_of(run: RunDir, source: Source) -> Origin:
    """The run, and the result in it."""
    return Origin(run.id, source.title)
