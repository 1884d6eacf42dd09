"""Settings from flat names: those of the environment variables, in lower case and without `vlsam_`."""

from dataclasses import fields
from typing import Any

from backend.settings import Settings


def settings_with(**values: Any) -> Settings:
    """`settings_with(deadline=2, cache_mb=0)`: values as they are after parsing; the rest are defaults."""
    groups = {
        name: group(
            **{
                spec.name: values.pop(flat)
                for spec in fields(group)
                if (flat := spec.metadata["env"].lower().removeprefix("vlsam_")) in values
            }
        )
        for name, group in Settings.groups().items()
    }
    assert not values, f"no such settings: {', '.join(values)}"
    return Settings(**groups)
