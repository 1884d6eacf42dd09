"""The small models that ship with the package, the scenes they know, and the script that trained them."""
