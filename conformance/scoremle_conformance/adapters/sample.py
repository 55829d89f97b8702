"""The sample library, honest and with each of its faults: reached as any other library is."""

from typing import ClassVar

import numpy as np

from scoremle_conformance import sample_library as library
from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import OUTPUTS, Field
from scoremle_conformance.images import Images

__all__ = ["Sample"]


class Sample(Adapter):
    name = "sample"
    settings: ClassVar = {"honest": "no fault", **library.FAULTS}
    outputs, paths = tuple(OUTPUTS), ("vp", "ve", "straight")
    can = frozenset({
        "exact", "probes", "several probes", "noise", "classes", "batches", "steps", "gradient",
        "probe error", "images", "several draws", "dequantizer",
    })  # fmt: skip
    adaptive, order = True, 4.0

    @property
    def version(self) -> str:
        return library.VERSION

    def _settings(self, ask: Ask) -> library.Settings:
        fault = None if self.setting == "honest" else self.setting
        return library.Settings(
            ask.exact, ask.probes, ask.seed, ask.steps, ask.batch_size, fault=fault
        )

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        found = library.log_prob(
            field, field.output, field.path, x, self._settings(ask), ask.labels
        )
        return Answer(*found)

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        fault = self._settings(Ask()).fault
        return library.gradient(field, field.output, field.path, x, fault)

    def log_prob_images(
        self, field: Field, images: np.ndarray, kind: Images, ask: Ask
    ) -> np.ndarray:
        return library.image_log_prob(
            field, field.output, field.path, images, kind.levels, self._settings(ask),
            ask.draws, ask.dequantizer,
        )  # fmt: skip
