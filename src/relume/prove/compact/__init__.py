"""A smaller model without the units that are dead, proven to compute the same."""

from relume.prove.compact.compact import compact as compact
from relume.prove.compact.compaction import Compaction as Compaction
from relume.prove.compact.measure import CompactionError as CompactionError
from relume.prove.compact.recipe import Recipe as Recipe
from relume.prove.compact.recipe import RecipeError as RecipeError
from relume.prove.compact.recipe import rebuild as rebuild
