"""Names in a working directory. `workdir.py` says what they are; nothing is imported here."""

SNAPSHOTS, PREEMPTION = "checkpoints", "checkpoints-meta"
SAMPLES_FOLDER, LOG_FILE = "samples", "metrics.jsonl"
FLOW_FOLDER = "flowpp_dequantizer"
# What a training writes, beside its records: folders of its own, and of libraries.
WRITTEN = (SNAPSHOTS, PREEMPTION, SAMPLES_FOLDER, LOG_FILE, "tensorboard", "wandb")
