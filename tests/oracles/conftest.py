"""What runs under other environments is not imported here."""

collect_ignore = ["quark/simulate.py"]
