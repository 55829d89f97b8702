"""Types of what results.json says: each field that is read anywhere is named here."""

from typing import Any, NotRequired, TypedDict

from scoremle.records import Count, Error, Name, Number

__all__ = ["RESULTS"]


class _Errors(TypedDict):
    """The parts of the error of a corrected mean."""

    images: Error | None
    probes: Error | None
    draws: Error | None
    solver: Error
    all: Error | None
    this_set: Error | None
    finest_bias: float


class _Choice(TypedDict):
    """Findings of a pilot about a solver: nothing finite where too few nodes fail."""

    nodes: Count
    images: Count
    solver_bias: Number
    solver_bias_stderr: Number
    tried: NotRequired[list[tuple[Count, Number]]]


class _Profile(TypedDict):
    """Bits that each noise level costs."""

    log_snr_edges: list[float]
    bits_per_dim: list[float]
    stderr: list[Error]


class _Progress(TypedDict):
    """Progress of a training."""

    steps: Count
    newest_step: Count
    finished: bool


class _Cost(TypedDict):
    """Cost of less than float32."""

    mean: float
    stderr: Error | None
    largest: float
    images: Count


class _Measure(TypedDict):
    """A measure of the quality of samples."""

    value: float
    stderr: Error | None
    samples: Count
    reference_images: Count | None


class _Reference(TypedDict, total=False):
    """Features that samples are compared with."""

    path: str
    images: Count
    origin: Any
    dataset: str
    split: str


class _Result(TypedDict, total=False):
    """Fields of a result."""

    metric: str
    unit: str
    kind: Name
    estimator: str
    model: str
    matching: str
    divergence: str | dict[str, Any]
    probes: Count | None
    dequantizer: str
    importance_samples: Count
    label: str
    decoder_scale: float | str
    mean: float
    stderr: Error | None
    noise_stderr: Error | None
    probe_stderr_of_mean: Error | None
    draw_stderr_of_mean: Error | None
    mean_probe_bias: float | None
    mean_nfe: float | None
    mean_solver_error: float | None
    seconds_per_image: float
    uncorrected_mean: float
    correction: float
    errors: _Errors
    level_nodes: list[Count]
    level_images: list[Count]
    solver_choice: _Choice | None
    profile: _Profile
    precision_cost: _Cost
    flags: dict[Name, Any]
    images: Count
    passes: Count
    split: str
    full_pass: bool
    augmentation: str
    eps: float
    dataset: str
    levels: Count
    data_version: str
    data_hash: str
    ema_hash: str
    precision: str
    seed: Count
    version: str
    checkpoint: Count
    step: Count
    training: _Progress
    dequantizer_step: Count
    dequantizer_training: _Progress
    measures: dict[str, _Measure]
    features: str
    reference: _Reference


class _Verdict(TypedDict):
    """Whether a relation between two results holds."""

    words: str
    holds: bool
    difference: float
    stderr: Error
    meaning: str


# By name, which is that of the result's files, too.
RESULTS = dict[Name, _Result | list[_Verdict] | None]
