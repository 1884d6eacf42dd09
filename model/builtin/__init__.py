"""The small models that ship with the package, and the scenes that they were trained on."""
