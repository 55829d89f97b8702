"""The VP SDE: four published configs."""
