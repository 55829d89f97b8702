"""Finds what does not belong, by p-values that hold: ``Detector`` is what users call."""

from scoremle.anomaly.detector import Anomalies, Detector

__all__ = ["Anomalies", "Detector"]
