"""Configuration: YAML files, registries, and the signatures that check them."""
