"""Is this log p right? Closed forms for code that claims the likelihood of a diffusion or flow.

python -m scoremle_conformance LIBRARY
"""

from scoremle_conformance.adapter import ABILITIES, Adapter, Answer, Ask
from scoremle_conformance.checks import CHECKS, FAIL, NOT_APPLICABLE, PASS, Case
from scoremle_conformance.fields import OUTPUTS, Field
from scoremle_conformance.images import Images
from scoremle_conformance.paths import PATHS, Path
from scoremle_conformance.report import Report, examined
from scoremle_conformance.signatures import SIGNATURES, Signature
from scoremle_conformance.subjects import Subject

__all__ = [
    "ABILITIES", "CHECKS", "FAIL", "NOT_APPLICABLE", "OUTPUTS", "PASS", "PATHS", "SIGNATURES",
    "Adapter", "Answer", "Ask", "Case", "Field", "Images", "Path", "Report", "Signature",
    "Subject", "examined",
]  # fmt: skip
