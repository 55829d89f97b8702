"""Arguments of ``import``, ``export`` and ``convert-inception``: files of others."""

from pathlib import Path

from scoremle.cli.commands import Parser
from scoremle.cli.places import check_export, check_import

__all__ = ["PUBLISHED", "convert_inception_parser", "export_parser", "import_parser"]

PUBLISHED = "cifar10_deep_vp_likelihood_iw_flip"


def import_parser() -> Parser:
    parser = Parser(
        prog="scoremle import",
        examples=(
            f"scoremle import {PUBLISHED}",
            "scoremle import ddpm-cifar10-32/ runs/ddpm --dataset=cifar10",
        ),
        description="Says what a published model is, and makes a workdir of it.",
        check=check_import,
    )
    parser.add_argument(
        "path", type=Path,
        help="a folder or file of score_flow or score_sde, or a model of another family that"
        " scoremle score takes",
    )  # fmt: skip
    parser.add_argument(
        "workdir", type=Path, nargs="?", help="to write; runs/NAME if left out"
    )
    parser.add_argument("--out", type=Path, help="the same")
    parser.add_argument(
        "--dataset", default="",
        help="of another family: what scoremle eval measures on, a name or the path of own images",
    )  # fmt: skip
    parser.add_argument("--name", help=f"name that the folder had, such as {PUBLISHED}")
    return parser


def export_parser() -> Parser:
    parser = Parser(
        prog="scoremle export",
        examples=(
            "scoremle export runs/digits digits.safetensors --card",
            "scoremle export runs/digits published/checkpoint_1 --checkpoint=1",
        ),
        description="Writes a checkpoint in the published format, or as safetensors.",
        check=check_export,
    )
    parser.add_argument("workdir", type=Path, help="where the checkpoint is")
    parser.add_argument(
        "path", type=Path,
        help="file to write: NAME.safetensors gets the averaged parameters, which scoremle score"
        " takes; another name, such as checkpoint_1, the whole training state, which scoremle"
        " import takes",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; the newest if left out")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.add_argument(
        "--card", action="store_true", help="write a model card too, from the results: PATH.md"
    )
    return parser


def convert_inception_parser() -> Parser:
    parser = Parser(
        prog="scoremle convert-inception",
        examples=(
            "scoremle convert-inception pt_inception-2015-12-05-6726825d.pth fid.npz",
            "scoremle convert-inception weights-inception-2015-12-05-6726825d.pth fid.npz",
        ),
        description="The Inception weights of PyTorch's FID packages, as the npz that eval and"
        " stats take.",
    )
    parser.add_argument("weights", type=Path, help="the state dict, a .pth file")
    parser.add_argument("out", type=Path, help="the npz to write")
    return parser
