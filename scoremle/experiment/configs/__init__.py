"""Experiments by name (``--config=digits``): each says what differs from the defaults."""

import pkgutil

__all__ = ["NAMED"]

# Modules by the names that --config takes, such as digits or vp/...
NAMED = {
    module.name.removeprefix(f"{__name__}.").replace(".", "/"): module.name
    for module in pkgutil.walk_packages(__path__, f"{__name__}.")
    if not module.ispkg
}
