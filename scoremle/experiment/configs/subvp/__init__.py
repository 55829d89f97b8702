"""The sub-VP SDE: four published configs."""
