"""The arguments of each command: all that a person can type, a file for what belongs together.

Nothing of JAX is imported: help, and what is wrong with arguments, come at once.
"""

from collections.abc import Callable

from scoremle.cli.commands import Parser
from scoremle.cli.parsers.data import data_parser, stats_parser
from scoremle.cli.parsers.experiments import (
    ModeParser,
    eval_parser,
    plan_parser,
    train_deq_parser,
    train_parser,
)
from scoremle.cli.parsers.files import (
    PUBLISHED,
    convert_inception_parser,
    export_parser,
    import_parser,
)
from scoremle.cli.parsers.models import compare_parser, report_parser, sample_parser, score_parser
from scoremle.cli.parsers.program import completion_parser, env_parser, verify_parser
from scoremle.cli.parsers.words import DATASETS, ESTIMATORS, FITS, SAMPLERS

__all__ = [
    "DATASETS", "ESTIMATORS", "FITS", "PARSERS", "PUBLISHED", "SAMPLERS",
    "ModeParser",
]  # fmt: skip

PARSERS: dict[str, Callable[[], Parser]] = {
    "train": train_parser,
    "eval": eval_parser,
    "train-deq": train_deq_parser,
    "plan": plan_parser,
    "sample": sample_parser,
    "score": score_parser,
    "report": report_parser,
    "compare": compare_parser,
    "data": data_parser,
    "stats": stats_parser,
    "import": import_parser,
    "export": export_parser,
    "convert-inception": convert_inception_parser,
    "verify": verify_parser,
    "env": env_parser,
    "completion": completion_parser,
}
