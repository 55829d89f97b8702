"""From a config to what is trained and evaluated in a working directory."""
